"""ONNX graphs: reading, normalization and execution. Every reader uses `graph.load`."""
