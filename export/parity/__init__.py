"""Parity: do two models compute the same? Outputs compared, and differences due to rounding."""
