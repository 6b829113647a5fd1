"""How is a network trained? The loop, several processes, checkpoints, teachers and batch norm."""
