"""The writer of packed models; `targets/coded` is the reader."""
