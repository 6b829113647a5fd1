"""Weights in few bytes, and every byte counted: what `targets/coded` reads is written here.

entropy     symbols to bytes: rANS with contexts, or whatever is smallest
rans, tables, writing    its parts
"""

from .entropy import encode_symbols

__all__ = ["encode_symbols"]
