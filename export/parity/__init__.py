"""Do two models compute the same? Outputs compared, and differences that rounding explains."""
