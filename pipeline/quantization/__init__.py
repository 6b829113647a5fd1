"""Which INT8 candidate is kept? Candidates on validation data, and the sensitivity of layers."""
