"""How does an ONNX model become INT8? Calibration, placement of Q/DQ, repairs, and half precision."""
