"""Attributes that repeat a width and that forward, as captured, does not read.

Other code may read them: another forward for export, a loss, a head that is built on `num_features`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .groups import Tracing


def unread_widths(model: nn.Module, tracing: Tracing, alive: Tensor) -> dict[str, dict[str, int]]:
    """The attributes of the user's modules that are as large as an axis of a value that the module computes,
    where all such axes are narrowed alike. It is a guess by value.

    Args:
        alive: bool[identities].
    """
    sizes: dict[str, dict[int, set[int]]] = {}
    for node in tracing.graph.graph.nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        known = tracing.values.get(node.name) or []
        for value in known if isinstance(known, list) else [known]:
            for vector in value.axes if stack else ():
                if vector is not None:
                    after = sizes.setdefault(stack[-1][0], {}).setdefault(len(vector), set())
                    after.add(int(torch.count_nonzero(alive[vector])))
    found: dict[str, dict[str, int]] = {}
    for path, widths in sizes.items():
        module = model.get_submodule(path)
        for name, value in vars(module).items() if not type(module).__module__.startswith("torch.") else ():
            after = widths.get(value, set()) if type(value) is int else set()
            if len(after) == 1 and after != {value}:
                found.setdefault(path, {})[name] = after.pop()
    return found
