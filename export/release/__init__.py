"""Releases for a board: the signed bundle, and the delta from the previous one."""
