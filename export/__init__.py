"""The export floor: from an nn.Module to the ONNX files and bundles for a board."""
