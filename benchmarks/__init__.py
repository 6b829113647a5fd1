"""Benchmarks: a folder a claim, each with a README that names it; common/ is what they share."""
