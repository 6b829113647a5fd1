"""Workstation code (torch): a trained network in, a smaller network out, and the run that proves it."""
