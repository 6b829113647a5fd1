"""Weights in few bytes, and every byte counted: what `targets/coded` reads is written here.

entropy     symbols to bytes: rANS with contexts, or whatever is smallest
rans, tables, writing    its parts
"""
