"""The encoder of weights; `targets/coded` is the decoder.

entropy     symbols to bytes: rANS with contexts, or a smaller form
rans, tables, writing    its parts
"""
