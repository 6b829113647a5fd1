"""What is this machine, and what state is it in? Probes, NVIDIA's tools, CUDA, disturbances."""
