"""The commands as functions: the same arguments and verdicts, for a script or a notebook.

Each returns a frozen result of `results` and prints nothing. Bad input raises a `DeadweightError` with a
cure, where the command ends with exit code 2.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .advising import advise, table
    from .files import build, lint, memory, quantize
    from .gating import gate
    from .latency import compare, profile
    from .recipes import check, init, prune, run, sweep
    from .soaking import soak

__all__ = [
    "advise",
    "build",
    "check",
    "compare",
    "gate",
    "init",
    "lint",
    "memory",
    "profile",
    "prune",
    "quantize",
    "run",
    "soak",
    "sweep",
    "table",
]
_HOMES = {"gate": "gating", "compare": "latency", "profile": "latency", "soak": "soaking"}
_HOMES |= dict.fromkeys(("check", "init", "prune", "run", "sweep"), "recipes")
_HOMES |= dict.fromkeys(("advise", "table"), "advising")


def __getattr__(name: str) -> Any:
    """Each file is imported on the first use of a function in it, so that a command loads what it needs."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES.get(name, 'files')}", __name__), name)
