"""The commands as functions: the same arguments and verdicts, for a script or a notebook.

Each returns a frozen result of `results` and prints nothing. Bad input raises a `DeadweightError` with a
cure, where the command ends with exit code 2.
"""

from .files import build, lint, memory, quantize
from .gating import gate
from .latency import compare, profile
from .recipes import prune, run, sweep

__all__ = ["build", "compare", "gate", "lint", "memory", "profile", "prune", "quantize", "run", "sweep"]
