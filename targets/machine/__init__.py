"""The machine: what it is, its state, and a process of it with limits. Probes, NVIDIA's tools, CUDA."""
