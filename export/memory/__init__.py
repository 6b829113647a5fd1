"""How much memory does an ONNX model need? Footprint, lower bound, arena plan, what a runtime may reuse."""
