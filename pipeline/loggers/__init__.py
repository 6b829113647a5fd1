"""Where else is a run written? Every file here with a function `log` is a logger: its name is the prefix."""
