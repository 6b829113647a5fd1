"""What tests share: networks, files, workloads, boards, a browser."""
