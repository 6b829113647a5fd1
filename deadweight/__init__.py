"""Remove the neurons that are dead weight, deploy what is left, and prove that it is faster."""

__version__ = "0.1.0"
