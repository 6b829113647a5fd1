"""How is a result shown in a terminal? Tables, progress, and the options that commands share."""
