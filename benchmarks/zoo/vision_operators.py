"""Lets torchvision and timm be imported where its compiled operators do not fit this build of torch.

Importing torchvision describes each of its operators to torch, which fails on a name that no library defined.
The names are enough: none of the networks measured here runs one of these operators (NMS, RoI pooling).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import re
from pathlib import Path

import torch

_LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]


@functools.cache
def define_missing() -> None:
    """Defines the operators that torchvision names and its compiled library lacks; before it is imported."""
    found = importlib.util.find_spec("torchvision")
    for folder in found.submodule_search_locations or () if found else ():
        for library in Path(folder).glob("_C*.so"):  # a name that it would define later may not be there yet
            with contextlib.suppress(OSError):
                torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        source = (Path(folder) / "_meta_registrations.py").read_text()
        for name in re.findall(r'register_(?:fake|meta)\("(?:torchvision::)?(\w+)"', source):
            if not hasattr(torch.ops.torchvision, name):
                _LIBRARY.define(f"{name}(Tensor x) -> Tensor")  # type: ignore[no-untyped-call]
