"""Modules that moved after 0.1.0: the old name imports the new module, with a warning, until 0.3.0."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_STAGES = (
    "cluster",
    "controls",
    "depth",
    "distill",
    "evaluate",
    "export",
    "factorize",
    "finetune",
    "iterative",
    "load",
    "lottery",
    "profile",
    "prune",
    "quantize",
    "share",
    "sparsify",
    "train",
)
MOVED = {
    **{f"deadweight.pipeline.{name}": f"deadweight.pipeline.stages.{name}" for name in _STAGES},
    "deadweight.pipeline.masks": "deadweight.pipeline.compression.masks",
    "deadweight.pipeline.norms": "deadweight.pipeline.training.batch_norm",
    "deadweight.pipeline.predict": "deadweight.pipeline.training.predict",
    "deadweight.pipeline.statistics": "deadweight.pipeline.importance.activations",
}
"""By the name in 0.1.0, the name now. `pipeline.importance` and `pipeline.training` answer for themselves."""


class OldNames:
    """A finder for `sys.meta_path`: asked last, and only for names that no file has."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, _: object = None) -> ModuleSpec | None:
        """A spec for an old name; nothing for any other."""
        return ModuleSpec(name, self) if name in MOVED else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """The default module; `exec_module` replaces it."""

    def exec_module(self, module: ModuleType) -> None:
        """Puts the new module in the place of the old one, so that its classes are the same objects."""
        old, new = module.__name__, MOVED[module.__name__]
        warnings.warn(
            f"{old} is {new} now; the old name will be removed in 0.3.0.", DeprecationWarning, stacklevel=2
        )
        sys.modules[old] = importlib.import_module(new)
