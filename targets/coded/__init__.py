"""The reader of packed models, for a board or a CI gate: the standard library and numpy, Python 3.8."""
