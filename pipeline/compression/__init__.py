"""Which weights can be zero or of low rank? Masks, sparse sizes, and the choice of ranks."""
