"""The middle floor: from an nn.Module to the ONNX files that a board takes."""
