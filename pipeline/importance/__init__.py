"""Which unit matters? Criteria, the statistics they use, and the allocation among layers."""

from __future__ import annotations

import importlib
import warnings

# The public names that stood in this module in 0.1.0; they can be imported from here until 0.3.0.
_MOVED = (
    "CRITERIA",
    "Context",
    "Criterion",
    "activation",
    "activation_outgoing",
    "activation_std",
    "apoz",
    "batch_norm",
    "below",
    "geometric_median",
    "lamp",
    "lamp_of",
    "mean_absolute",
    "random",
    "taylor",
    "weight_l1",
    "weight_l2",
)


def __getattr__(name: str) -> object:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = f"{__name__}.criteria"
    warnings.warn(
        f"{name} of {__name__} is in {home} now; the old name will be removed in 0.3.0.",
        DeprecationWarning,
        stacklevel=2,
    )
    return getattr(importlib.import_module(home), name)
