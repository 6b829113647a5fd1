"""Copies and narrows a user's own module: its parameters, buffers, and the attributes that repeat widths."""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .literals import guessed_literals, is_literal, with_literals
from .plan import Attributes, Cut, both, owner_of

if TYPE_CHECKING:
    from .groups import Tracing
    from .resize import Change

WIDTH_ARGUMENTS = ("groups", "num_groups", "normalized_shape")
"""Arguments of operators that torch's own layers have as attributes of the same name."""


_OWN = frozenset(vars(nn.Module()))
"""The attributes of every torch module: parameters, hooks, other modules."""


def copied_module(model: nn.Module, tensors: Mapping[int, Tensor]) -> nn.Module:
    """A deep copy with replaced tensors, by the id of the original.

    Tensors of an earlier run (a cached activation, the weight of an old weight norm) are detached: the next
    run computes them again, and `deepcopy` refuses them. The dozen hook tables of each module are nearly
    always empty: new ones instead of copies save nearly half of the work.
    """
    owned = [value for module in model.modules() for value in vars(module).values()]
    empty = {id(one): type(one)() for one in owned if type(one) in (dict, OrderedDict, set) and not one}
    with contextlib.suppress(RuntimeError):  # nearly always there are none
        return copy.deepcopy(model, empty | dict(tensors))
    kept = [
        value
        for module in model.modules()
        for name, value in vars(module).items()
        if name not in _OWN and not isinstance(value, (int, float, str, nn.Module))
    ]
    tensors_kept = [one for one in (*pytree.tree_leaves(kept), *model.buffers()) if isinstance(one, Tensor)]
    stale = {id(one): one.detach() for one in tensors_kept if not one.is_leaf}
    return copy.deepcopy(model, empty | stale | dict(tensors))


def narrowed(model: nn.Module, tensors: Mapping[str, Tensor], attributes: Attributes) -> nn.Module:
    """A copy of `model` with `tensors` (see `cut_tensors`) and these attributes."""
    # Every reference to a parameter, by its name or in a list, now refers to the narrow one.
    small = copied_module(model, {id(tensor): tensors[name] for name, tensor in named_tensors(model)})
    set_attributes(small, attributes)
    return small


def set_attributes(small: nn.Module, attributes: Attributes) -> None:
    """Sets attributes of modules; a list is converted to the attribute's type.

    A parameter's shape has priority: attributes are found by value, which may be that of another width.
    """
    for path, values in attributes.items():
        module = small.get_submodule(path)
        for name, value in values.items():
            if is_literal(name):
                kind: Any = type(module)
                module.__class__ = with_literals(kind, ((name, value),))
            else:
                _set(module, name, value)
    for module in small.modules():
        _follow_shapes(module)


def cut_tensors(named: Iterable[tuple[str, Tensor]], cut: Cut) -> dict[str, Tensor]:
    """These parameters and buffers, copied, without the indices in `cut`; shared ones stay shared."""
    made: dict[int, Tensor] = {}
    tensors = {}
    for name, tensor in named:
        if id(tensor) not in made:
            made[id(tensor)] = without(tensor, cut.get(name, {}))
        tensors[name] = made[id(tensor)]
    return tensors


@contextlib.contextmanager
def holding(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Other values in a module's tensors, wherever it refers to them; another copy of it would cost more."""
    own = {name: tensors[name].data for name in values}
    try:
        for name, value in values.items():
            tensors[name].data = value
        yield
    finally:
        for name, value in own.items():
            tensors[name].data = value


def masks(named: Mapping[str, Tensor], cut: Cut) -> dict[str, Tensor]:
    """Copies of the parameters that are cut, with removed indices at zero, for `holding`.

    Buffers stay: a variance of zero would be wrong.
    """
    found: dict[int, Tensor] = {}
    cut_ones = [(name, named[name]) for name in cut if isinstance(named[name], nn.Parameter)]
    for name, parameter in cut_ones:
        if id(parameter) not in found:
            value = found[id(parameter)] = parameter.detach().clone()
            for axis, indices in cut[name].items():
                value.index_fill_(axis, _numbers_of(tuple(indices)).to(value.device), 0)
    return {name: found[id(one)] for name, one in cut_ones}


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def elements_of(model: nn.Module) -> int:
    """The number of elements of its parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def known_attributes(model: nn.Module, changes: Sequence[Change]) -> dict[str, dict[str, Any]]:
    """The constants that changed, by the attribute names of torch's layers, if no shape determines them."""
    found: dict[str, dict[str, Any]] = {}
    for change in changes:
        if change.argument in WIDTH_ARGUMENTS and hasattr(
            model.get_submodule(change.module), change.argument
        ):
            found.setdefault(change.module, {})[change.argument] = change.after
    return found


def guessed_attributes(model: nn.Module, changes: Sequence[Change]) -> list[dict[str, dict[str, Any]]]:
    """Attributes of the user's modules that may be the origin of constants that changed in their code.

    They are guesses by value (`num_heads` and `window` may be equal), the surest first, so that each must be
    checked: none but those of torch's layers; those with the value of a constant, at first no settings within
    others (a configuration's patch size may be as large as a head); those with the size of an operand, from
    which code derives a constant (`self.channels // 2`); a choice of code that is switched off, where an
    attention took its scale from the width (other code may have its own); and these without one name whose
    value a constant has twice, of which one stays (eight heads of eight features). Each is also tried with
    the literals of methods that may be the origin.
    """
    known = known_attributes(model, changes)
    equal, sized = copy.deepcopy(known), copy.deepcopy(known)
    switches: dict[str, dict[str, dict[str, Any]]] = {}
    unsure: set[str] = set()
    for change in changes:
        module = model.get_submodule(change.module)
        pairs = [(a, b) for a, b in change.numbers if a != b]
        stays = {a for a, b in change.numbers if a == b}
        for name, value in _stored(vars(module)):
            for found, some in ((equal, pairs), (sized, [*pairs, *change.sizes])):
                after = _followed(value, change, some)
                if after is not None:
                    found.setdefault(change.module, {}).setdefault(name, after)
                    unsure |= {name} if isinstance(value, int) and value in stays else set()
            if change.argument == "scale" and value is True and name != "training":
                switches.setdefault(name, {})[change.module] = {name: False}
    off = [
        {path: sized.get(path, {}) | one.get(path, {}) for path in sized | one} for one in switches.values()
    ]
    guesses = [known, _those(equal, lambda name: "." not in name), equal, sized, *off]
    for left in sorted(unsure):
        guesses += [_those(one, functools.partial(operator.ne, left)) for one in (equal, *off)]
    written = guessed_literals(model, changes)
    guesses += [both(one, written) for one in guesses]
    return [one for place, one in enumerate(guesses) if one not in guesses[:place]]


def without_each(attributes: Attributes) -> list[dict[str, dict[str, Any]]]:
    """The same without the attributes of one name, in all modules."""
    names = sorted({name for some in attributes.values() for name in some})
    return [_those(attributes, functools.partial(operator.ne, left)) for left in names]


def _those(attributes: Attributes, wanted: Callable[[str], bool]) -> dict[str, dict[str, Any]]:
    return {
        path: {name: one for name, one in some.items() if wanted(name)} for path, some in attributes.items()
    }


def _stored(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Attributes by name, with those of dictionaries, configurations and partial functions among them."""
    for name, value in values.items():
        if name not in _OWN and isinstance(name, str) and "." not in name and above.count(".") < 3:
            yield above + name, value
            inner = value if isinstance(value, dict) else getattr(value, "__dict__", None)
            plain = not isinstance(value, (nn.Module, Tensor, type)) and not hasattr(value, "__deepcopy__")
            if isinstance(value, functools.partial):
                yield from _stored(value.keywords, f"{above}{name}.keywords.")
            elif isinstance(inner, dict) and plain and not callable(value):
                yield from _stored(inner, f"{above}{name}.")


def _followed(value: Any, change: Change, pairs: Sequence[tuple[int, int]]) -> Any:
    """What a stored value would be if the constant comes from it; None if it does not."""
    if isinstance(value, (list, tuple)) and value and isinstance(change.before, (list, tuple)):
        for start in range(len(change.before) - len(value) + 1):
            part = slice(start, start + len(value))
            if list(value) == list(change.before[part]) != list(change.after[part]):
                return list(change.after[part])
    if isinstance(value, int) and not isinstance(value, bool):
        return next((after for before, after in pairs if value == before), None)
    return None


def unread_widths(model: nn.Module, tracing: Tracing, alive: Tensor) -> dict[str, dict[str, int]]:
    """The attributes of the user's modules that are as large as an axis of a value that the module computes,
    where all such axes are narrowed alike.

    It is a guess by value, for those that forward, as captured, does not read: another forward for export
    may, a loss, or a head that is built on `num_features`.

    Args:
        alive: bool[identities].
    """
    sizes: dict[str, dict[int, set[int]]] = {}
    for node in tracing.graph.graph.nodes:
        for value in pytree.tree_leaves(tracing.values.get(node.name, ())):
            for vector in value.axes if node.meta.get("nn_module_stack") else ():
                if vector is not None:
                    after = sizes.setdefault(owner_of(node), {}).setdefault(len(vector), set())
                    after.add(int(torch.count_nonzero(alive[vector])))
    found: dict[str, dict[str, int]] = {}
    for path, widths in sizes.items():
        module = model.get_submodule(path)
        for name, value in vars(module).items() if not type(module).__module__.startswith("torch.") else ():
            after = widths.get(value, set()) if type(value) is int else set()
            if len(after) == 1 and after != {value}:
                found.setdefault(path, {})[name] = after.pop()
    return found


def config_widths(model: nn.Module, small: nn.Module) -> dict[str, int] | None:
    """The sizes in a transformers configuration from which the class builds a network like `small`.

    A first network, built of numbers with names, shows which attributes of its modules they become; a second,
    of the sizes that `small` has there, must have its shapes and numbers everywhere.

    Returns:
        by the name of the attribute ("config.hidden_size"), those that change; None if none describe `small`.
    """
    config = vars(model).get("config")
    if not hasattr(model, "save_pretrained") or config is None:
        return {}
    numbers = dict(_numbers(config, "config"))
    sizes: dict[str, set[int]] = {}
    with contextlib.suppress(Exception), torch.device("meta"):  # sizes that do not go together
        of_names = {name: _Named(value) for name, value in numbers.items()}
        for name, one in of_names.items():
            one.name = name
        for path, module in _built(model, of_names).named_modules():
            now = vars(small.get_submodule(path))
            for name, one in vars(module).items():
                if isinstance(one, _Named):
                    sizes.setdefault(one.name, set()).add(now[name])
        changed = {name: one for name, found in sizes.items() for one in found if one != numbers[name]}
        if all(len(found) == 1 for found in sizes.values()) and _alike(_built(model, changed), small):
            return changed
    return None


def read_attributes(model: nn.Module, attributes: Attributes) -> dict[str, dict[str, Any]]:
    """Those that a method of their module reads, and literals."""
    return {
        path: {
            name: value
            for name, value in some.items()
            if is_literal(name) or reads(model.get_submodule(path), name.rpartition(".")[2])
        }
        for path, some in attributes.items()
    }


def reads(module: nn.Module, name: str) -> bool:
    """Whether a method of a module's class, but for its constructor, has this name in its code."""
    methods = [each for kind in type(module).__mro__ for each in vars(kind).items()]
    codes = [getattr(method, "__code__", None) for key, method in methods if key != "__init__"]
    return any(name in code.co_names for code in codes if code is not None)


def limits(attributes: Attributes) -> set[int]:
    """The sizes just above these values: an attribute may be a length's limit that had a width's value."""
    return {value + 1 for some in attributes.values() for value in some.values() if type(value) is int}


class _Named(int):
    """A number of a configuration, with its name."""

    name: str


def _built(model: nn.Module, numbers: Mapping[str, int]) -> nn.Module:
    """Another network of its class, with other numbers in its configuration."""
    shell = SimpleNamespace(config=copy.deepcopy(model.config))
    for name, value in numbers.items():
        _set(shell, name, value)
    return type(model)(shell.config)


def _numbers(config: Any, path: str) -> Iterator[tuple[str, int]]:
    """The integers in a configuration and those in it."""
    for name, value in vars(config).items():
        if type(value) is int:
            yield f"{path}.{name}", value
        elif hasattr(value, "to_dict"):
            yield from _numbers(value, f"{path}.{name}")


def _set(holder: Any, path: str, value: Any) -> None:
    """Sets an attribute or item, also one within: "config.width"; a list gets the type of the old one."""
    *above, last = path.split(".")
    for step in above:
        holder = holder[step] if isinstance(holder, dict) else getattr(holder, step)
    kind = type(holder[last] if isinstance(holder, dict) else getattr(holder, last))
    put = holder.__setitem__ if isinstance(holder, dict) else functools.partial(setattr, holder)
    put(last, kind(value) if isinstance(value, list) else value)


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two networks have tensors of the same shapes, and modules with the same numbers."""
    facts = [
        (
            {name: tensor.shape for name, tensor in named_tensors(model)},
            {
                (path, name): value
                for path, module in model.named_modules()
                for name, value in vars(module).items()
                if type(value) in (int, float, tuple)
            },
        )
        for model in (one, other)
    ]
    return facts[0] == facts[1]


def without(tensor: Tensor, axes: Mapping[int, Sequence[int]]) -> Tensor:
    """A copy of a tensor without some of its indices, by axis."""
    value = tensor.detach()
    for axis, indices in axes.items():
        kept = _numbers_of(tuple(indices), value.shape[axis])
        value = value.index_select(axis, kept.to(value.device))
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        value = value.contiguous(memory_format=torch.channels_last)
    value = value if axes else value.clone()
    return nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value


@functools.lru_cache(256)
def _numbers_of(indices: tuple[int, ...], size: int = 0) -> Tensor:
    """These indices, or of an axis of a size all others; many parameters are cut alike."""
    removed = np.array(indices, dtype=np.int64)
    return torch.from_numpy(np.delete(np.arange(size), removed) if size else removed)


def _follow_shapes(module: nn.Module) -> None:
    """Sets the attributes of torch's layers that repeat a parameter's shape."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.conv._ConvNd):
        first, second = module.weight.shape[:2]
        wide = second * module.groups
        module.out_channels, module.in_channels = (wide, first) if module.transposed else (first, wide)
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        source = module.weight if module.weight is not None else module.running_mean
        module.num_features = module.num_features if source is None else len(source)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.Bilinear):
        module.out_features, module.in1_features, module.in2_features = module.weight.shape
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        module.embedding_dim = module.weight.shape[1]
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif isinstance(module, nn.RNNCellBase):
        module.input_size = module.get_parameter("weight_ih").shape[1]
        module.hidden_size = module.get_parameter("weight_hh").shape[1]
    elif isinstance(module, nn.RNNBase):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
        last = module.get_parameter("weight_hr_l0" if module.proj_size else "weight_hh_l0")
        module.hidden_size = last.shape[1]
        module.proj_size = last.shape[0] if module.proj_size else 0
