"""What does each command do? One file per family of commands, named as in --help."""
