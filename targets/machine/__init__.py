"""The machine: what it is and its state. Probes, NVIDIA's tools, CUDA, disturbances."""
