"""How is a model opened and run? Sessions of ONNX Runtime and TensorRT."""
