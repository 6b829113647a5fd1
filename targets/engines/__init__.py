"""Around a TensorRT engine: how it is built, opened and described, and what it keeps beside itself."""
