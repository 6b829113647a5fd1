"""Which INT8 candidate is best? Candidates on validation data, and the sensitivity of layers."""
