"""What does each command do? One file a family of commands, named as in --help."""
