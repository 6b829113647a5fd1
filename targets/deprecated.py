"""The table of deprecated names: the new name, and the version that removes the old one."""

from __future__ import annotations

import importlib
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Callable, Dict, Optional, Sequence

_PIPELINE = "deadweight.pipeline"
_STAGES = (
    "cluster controls depth distill evaluate export factorize finetune iterative load lottery profile prune "
    "quantize share sparsify train"
)
_CRITERIA = (
    "CRITERIA Context Criterion activation activation_outgoing activation_std apoz batch_norm below "
    "geometric_median lamp lamp_of mean_absolute random taylor weight_l1 weight_l2"
)
_TRAINING = {"fit": "Fitted check_order", "loop": "Schedule learn train_step"}
DEPRECATED: Dict[str, Dict[str, str]] = {
    "0.3.0": {
        **{f"{_PIPELINE}.{name}": f"{_PIPELINE}.stages.{name}" for name in _STAGES.split()},
        f"{_PIPELINE}.masks": f"{_PIPELINE}.compression.masks",
        f"{_PIPELINE}.norms": f"{_PIPELINE}.training.batch_norm",
        f"{_PIPELINE}.predict": f"{_PIPELINE}.training.predict",
        f"{_PIPELINE}.statistics": f"{_PIPELINE}.importance.activations",
        **{
            f"{_PIPELINE}.importance.{name}": f"{_PIPELINE}.importance.criteria.{name}"
            for name in _CRITERIA.split()
        },
        **{
            f"{_PIPELINE}.training.{name}": f"{_PIPELINE}.training.{home}.{name}"
            for home, names in _TRAINING.items()
            for name in names.split()
        },
        f"{_PIPELINE}.training.training_words": f"{_PIPELINE}.training.fit.training_sentence",
    }
}
"""By the version that removes them: modules and names of 0.1.0, and their new names."""
_NEW = {old: (new, version) for version, names in DEPRECATED.items() for old, new in names.items()}


def replacement(old: str, *, stacklevel: int) -> str:
    """Warns about the old name and returns the new one."""
    new, version = _NEW[old]
    words = f"{old} is {new} now; the old name will be removed in {version}."
    warnings.warn(words, DeprecationWarning, stacklevel=stacklevel + 1)
    return new


def old_names(package: str) -> Callable[[str], object]:
    """A `__getattr__` for a package that was a module, for the names that moved into its files."""

    def find(name: str) -> object:
        if f"{package}.{name}" not in _NEW:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home, _, name = replacement(f"{package}.{name}", stacklevel=2).rpartition(".")
        return getattr(importlib.import_module(home), name)

    return find


class OldModules:
    """A finder for `sys.meta_path`: called last, only for modules without a file."""

    def find_spec(
        self, name: str, path: Optional[Sequence[str]] = None, _: object = None
    ) -> Optional[ModuleSpec]:
        """A spec for an old name; None for any other."""
        return ModuleSpec(name, self) if name in _NEW else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """None, for a default module; `exec_module` replaces it."""

    def exec_module(self, module: ModuleType) -> None:
        """Replaces the old module by the new one, so that its classes are the same objects."""
        old = module.__name__
        sys.modules[old] = importlib.import_module(replacement(old, stacklevel=2))
