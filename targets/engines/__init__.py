"""TensorRT engines: build, record, content and comparison."""
