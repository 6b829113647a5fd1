"""Deep copies of modules, also of those that store tensors of an earlier run."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn
from torch.utils import _pytree as pytree

_OWN = frozenset(vars(nn.Module()))
"""The attributes of every torch module: parameters, hooks, other modules."""


def copied_module(model: nn.Module, tensors: Mapping[int, Tensor]) -> nn.Module:
    """A deep copy with replaced tensors, by the id of the original.

    Tensors of an earlier run (a cached activation, the weight of an old weight norm) are detached: the next
    run computes them again, and `deepcopy` refuses them. The dozen hook tables of each module are nearly
    always empty: new ones instead of copies save nearly half of the work.
    """
    kept = [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in _OWN and not isinstance(value, (int, float, str, nn.Module))
    ]
    tensors_kept = [one for one in (*pytree.tree_leaves(kept), *model.buffers()) if isinstance(one, Tensor)]
    stale = {id(one): one.detach() for one in tensors_kept if not one.is_leaf}
    owned = [value for module in model.modules() for value in vars(module).values()]
    empty = {id(one): type(one)() for one in owned if type(one) in (dict, OrderedDict, set) and not one}
    return copy.deepcopy(model, empty | stale | dict(tensors))
