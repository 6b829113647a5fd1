"""The stage "share": weight sharing (tying) between layers that the user names or that are equal.

Tied parameters are one parameter: training updates them together, and a file stores them once. The tie is a
plan among the network's plans, so a network that is loaded, pruned or tuned later is still tied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...targets.errors import ModelError, RecipeError, meant
from ..pruning.factors import relaid, relaying
from ..pruning.narrow import elements_of
from ..pruning.plan import plan_of, record
from ..work import Work

Ties = tuple[tuple[str, ...], ...]
"""Names of parameters that are, or will be, one."""


@dataclass(frozen=True)
class Share:
    """Ties layers of the newest network; the result is the network "shared".

    Attributes:
        ties: lists of names of modules or parameters; those of one list become one, at their mean.
        equal: whether layers with bitwise equal weights are tied too.
    """

    ties: Ties = ()
    equal: bool = True
    shrinks: ClassVar[bool] = True
    recovers: ClassVar[bool] = True  # controls of an earlier cut run through it too

    def __post_init__(self) -> None:
        if not self.equal and not self.ties:
            raise RecipeError(
                "The stage share has nothing to do: no ties, and equal = false.",
                "Name the layers to tie, e.g. ties = [['encoder.0', 'encoder.1']], or leave equal out.",
            )
        for names in self.ties:
            if len(set(names)) < 2:
                raise RecipeError(
                    f"The stage share has a list of {len(set(names))} names to tie: {', '.join(names)}.",
                    "Give at least two names in each.",
                )

    def __call__(self, work: Work) -> Work:
        model = work.model()
        ties = merged(model, [pair for names in self.ties for pair in parameters_of(model, names)])
        words = [f"{' = '.join(names)}: moved by {moved:.3f}" for names, moved in drift(model, ties).items()]
        if self.equal:
            found = merged(model, equal_layers(model))
            new = [names for names in found if not any(set(names) <= set(known) for known in ties)]
            words += [f"{' = '.join(names)}: equal" for names in new]
            ties = merged(model, [*ties, *found])
        if not ties:
            return work.logged("share", self, "no two layers are equal: nothing was tied")
        shared = tied(model, ties)
        before, after = (elements_of(net) for net in (model, shared))
        made = work.with_model("shared", shared, plan=plan_of(shared))
        return made.logged("share", self, f"{before:,} parameters -> {after:,}", *words)


def tied(model: nn.Module, ties: Ties) -> nn.Module:
    """A copy of the network in which the parameters of each tie are one, at their mean; its plan lists them.

    Raises:
        ModelError: a parameter does not exist, or the shapes differ.
    """
    plan = relaying(model, "tied parameters", ties=ties)
    made = relaid(model, plan)
    with torch.no_grad():
        for names in ties:
            made.get_parameter(names[0]).copy_(_mean(model, names))
    return record(made, plan, of=model)


def parameters_of(model: nn.Module, names: Sequence[str]) -> list[tuple[str, ...]]:
    """The parameters that become one when these modules or parameters are tied.

    Raises:
        ModelError: a name does not exist (the nearest is proposed), or their parameters differ.
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    modules = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
    inner: list[dict[str, nn.Parameter]] = []
    for name in names:
        under = {path[len(name) :]: one for path, one in every.items() if f"{path}.".startswith(f"{name}.")}
        if not under:
            known = f"It has: {', '.join(modules) or ', '.join(every)}."
            raise ModelError(
                f'The network has no layer or parameter "{name}"'
                + (" with parameters of its own." if name in modules else "."),
                known if name in modules else meant(name, [*modules, *every], known),
            )
        inner.append(under)
    for name, under in zip(names[1:], inner[1:], strict=True):
        mine, theirs = ({path: tuple(one.shape) for path, one in of.items()} for of in (inner[0], under))
        if mine != theirs:
            raise ModelError(
                f"{names[0]} and {name} cannot be tied: {_shapes(mine)} against {_shapes(theirs)}.",
                "Tie layers of one shape.",
            )
    return [tuple(f"{name}{path}" for name in names) for path in inner[0]]


def equal_layers(model: nn.Module) -> list[tuple[str, ...]]:
    """The parameters of bitwise equal layers: of one kind, with all parameters and buffers the same.

    Weights of a single value (all zero, all one) do not count: many start so but do not stay so.
    """
    alike: dict[tuple[object, ...], list[str]] = {}
    for name, module in model.named_modules():
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        weights = [one for one in module.parameters() if one.dim() > 1 and (one != one.flatten()[0]).any()]
        if not weights or any(True for _ in module.children()):
            continue
        content = [(path, one.dtype, tuple(one.shape), _bytes(one)) for path, one in tensors.items()]
        alike.setdefault((type(module), *content), []).append(name)
    return [pair for names in alike.values() if len(names) > 1 for pair in parameters_of(model, names)]


def owners(model: nn.Module) -> Ties:
    """The names of each parameter that has several names: these tensors are one."""
    names: dict[int, list[str]] = {}
    for name, one in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(one), []).append(name)
    return tuple(tuple(own) for own in names.values() if len(own) > 1)


def merged(model: nn.Module, ties: Sequence[Sequence[str]]) -> Ties:
    """The same ties merged: two that share a parameter, also under another of its names, are one.

    Ties that exist already are left out; names are in the network's order.
    """
    order = {name: at for at, (name, _) in enumerate(model.named_parameters(remove_duplicate=False))}
    groups: list[set[str]] = []
    for names in (*ties, *owners(model)):
        meeting = [group for group in groups if group & set(names)]
        groups = [group for group in groups if group not in meeting] + [set(names).union(*meeting)]
    held = {frozenset(names) for names in owners(model)}
    lists = [tuple(sorted(group, key=lambda name: order[name])) for group in groups if group not in held]
    return tuple(sorted(lists, key=lambda names: order[names[0]]))


def drift(model: nn.Module, ties: Ties) -> dict[tuple[str, ...], float]:
    """By tie, the distance of its parameters from their mean: relative Frobenius norm of all together."""
    found = {}
    for names in ties:
        mean, each = _mean(model, names), [model.get_parameter(name).detach().double() for name in names]
        apart = sum(float((one - mean).square().sum()) for one in each)
        size = sum(float(one.square().sum()) for one in each)
        found[names] = (apart / size) ** 0.5 if size else 0.0
    return found


def _mean(model: nn.Module, names: Sequence[str]) -> Tensor:
    # A parameter with several names counts once.
    each = {id(one): one.detach().double() for one in map(model.get_parameter, names)}
    return torch.stack(list(each.values())).mean(0)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{path.lstrip('.')} {shape}".strip() for path, shape in shapes.items())
