"""The encoder of weights; `targets/coded` is the decoder.

entropy     symbols to bytes: rANS with contexts, or a smaller form
tables      of the frequencies of symbols
"""
