"""The budget: which widths make the most accurate network that runs in a given time."""
