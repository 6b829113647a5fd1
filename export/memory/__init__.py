"""The memory footprint of an ONNX model: lower bound, arena plan, rules of runtimes."""
