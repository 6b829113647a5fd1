"""How is an ONNX graph read, normalized and run? Every pass and every reader goes through `graph.load`."""
