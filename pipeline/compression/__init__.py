"""Which weights can be zero or low rank? Masks, sparse sizes, and the choice of ranks."""
