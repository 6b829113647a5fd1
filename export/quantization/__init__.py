"""Quantization of ONNX models: calibration, placement of Q/DQ, corrections, and half precision."""
