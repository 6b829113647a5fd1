"""How is a network trained? The loop, several processes, checkpoints, teachers and batch norm."""

from __future__ import annotations

import importlib
import warnings

# The public names that stood in this module in 0.1.0; they can be imported from here until 0.3.0.
_MOVED = {
    "Fitted": "fit",
    "Schedule": "loop",
    "check_order": "fit",
    "learn": "loop",
    "train_step": "loop",
    "training_words": "fit",
}


def __getattr__(name: str) -> object:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.{_MOVED[name]}"
    warnings.warn(
        f"{name} of {__name__} is in {home} now; the old name will be removed in 0.3.0.",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(importlib.import_module(home), name)
