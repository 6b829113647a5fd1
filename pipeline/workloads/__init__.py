"""Workloads without a class: a network by a name, data from files or loaders, a task's loss and score."""
