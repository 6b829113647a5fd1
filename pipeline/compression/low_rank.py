"""A network with some of its layers thin: which can be, the network itself, and the proof that it is right.

Thin layers are modules, and a network's code may read a layer's weight past the module (torch's own encoder
layer does in its fast path). So what is handed out is proven: it computes what the whole network does whose
weights are the products of the thin ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ...targets.errors import ModelError, meant
from ...targets.target import Target
from ..pruning.compare import relative_error, run, tolerance
from ..pruning.factors import NAMES, composed, cut, most_ranks, relaid, why_not
from ..pruning.graphnet import GraphNet
from ..pruning.narrow import copied_module
from ..pruning.plan import Factors, Plan, Width, fingerprint, plan_of, record
from ..pruning.trial import earlier_plans
from .rank_selection import Candidate, Choice, factors_of

Convolution = Literal["spatial", "channel", "tucker"]

_PAST = "Name in `layers` those that its forward calls as modules."


def candidates(
    model: nn.Module,
    example: Mapping[str, Tensor],
    target: Target,
    *,
    convolution: Convolution = "spatial",
    layers: Sequence[str] = (),
) -> tuple[dict[str, Candidate], dict[str, str]]:
    """The layers that can be made thin, decomposed; and those that are left alone, each with the reason.

    Args:
        layers: only these; none for all.

    Raises:
        ModelError: the network has no layer of a name in `layers`, or is in the graph form.
    """
    if isinstance(model, GraphNet):
        raise ModelError(
            "The network has the graph form, whose layers are operators and no modules.",
            "Put the stage factorize before the stage prune.",
        )
    modules = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
    }
    for name in layers:
        if name not in modules:
            raise ModelError(
                f'The network has no linear layer or convolution "{name}".',
                meant(name, modules, f"It has: {', '.join(modules) or 'none'}."),
            )
    plan = plan_of(model)
    thin = {name for step in (*plan.earlier, plan) for name in step.factors} if plan else set()
    holders = Counter(id(one) for module in model.modules() for one in module.parameters(recurse=False))
    left: dict[str, str] = {}
    able: dict[str, nn.Module] = {}
    for name, module in modules.items():
        if name in layers or not layers:
            why = why_not(module) or ("" if name else "it is the whole network")
            if not why and holders[id(module.weight)] > 1:
                why = "its weight is tied to another layer's; put the stage share after this one"
            if name.rpartition(".")[0] in thin:
                why = "it is a thin layer already"
            if why:
                left[name] = why
            else:
                able[name] = module
    shapes = _shapes(model, able, list(example.values()))
    left |= {name: "the network does not call it" for name in able if not shapes[name]}
    found = {}
    for name, layer in able.items():
        if shapes[name]:
            method = "svd" if isinstance(layer, nn.Linear) else convolution
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
                method = "channel"
            found[name] = Candidate.of(name, method, layer.get_parameter("weight"), shapes[name], target)
    return _sound(model, found, left, list(example.values())), left


def factorized(
    model: nn.Module, candidates: Mapping[str, Candidate], chosen: Mapping[str, Choice]
) -> nn.Module:
    """A copy of the network with these layers thin; the plan recorded in it says which.

    Raises:
        ModelError: a layer cannot be made thin.
    """
    factors = factors_of(candidates, chosen)
    before = plan_of(model)
    widths = dict(before.widths) if before else {}
    for name, one in factors.items():
        most = most_ranks(one.method, tuple(model.get_submodule(name).get_parameter("weight").shape))
        for place, (top, rank) in enumerate(zip(most, one.ranks, strict=True)):
            widths[f"{name}.{NAMES[len(most) + 1][place]}"] = Width("rank", top, rank)
    plan = Plan(
        fingerprint(model),
        removed={},
        cut={},
        shapes={},
        widths=widths,
        form="layers",
        reason="layers of low rank",
        earlier=earlier_plans(model),
        factors=factors,
    )
    thin = relaid(model, plan)
    with torch.no_grad():
        for name, one in factors.items():
            parts = cut(candidates[name].parts, one.ranks)
            layers = thin.get_submodule(name)
            for layer, part in zip(layers.children(), parts, strict=True):
                layer.get_parameter("weight").copy_(part)
            bias = model.get_submodule(name).bias
            if isinstance(bias, Tensor):
                layers.get_submodule("expand").get_parameter("bias").copy_(bias)
    return record(thin, plan)


def prove(model: nn.Module, thin: nn.Module, inputs: Sequence[Tensor]) -> float:
    """The difference between the thin network and the whole one that holds the products as its weights.

    Raises:
        ModelError: they are not the same to rounding: some code reads a layer's weight past the layer.
    """
    plan = plan_of(thin)
    assert plan is not None
    product = copied_module(model, {})
    with torch.no_grad():
        for name, one in plan.factors.items():
            product.get_submodule(name).get_parameter("weight").copy_(product_of(thin, name, one))
    expected = run(product, inputs)
    try:
        found = run(thin, inputs)
        wrong = relative_error(expected, found)
    except Exception as error:  # the user's own forward may fail in any way
        raise ModelError(
            f"The network does not run with thin layers: {type(error).__name__}: {error}.", _PAST
        ) from error
    if wrong > 10 * tolerance([*expected, *found]):  # the order of sums differs in every thin layer
        raise ModelError(f"The network with thin layers is off by {wrong:.1e}.", _PAST)
    return wrong


def product_of(thin: nn.Module, name: str, factors: Factors) -> Tensor:
    """The weight that the thin layers of that name stand for, in double precision."""
    layers = thin.get_submodule(name).children()
    return composed(factors.method, tuple(layer.get_parameter("weight").detach() for layer in layers))


def _sound(
    model: nn.Module, found: dict[str, Candidate], left: dict[str, str], inputs: Sequence[Tensor]
) -> dict[str, Candidate]:
    """Those whose thin layers make the network fail or another one are left alone."""

    def wrong(names: Sequence[str]) -> str:
        chosen = {
            name: found[name].at(tuple((top + 1) // 2 for top in found[name].energies.shape))
            for name in names
        }
        try:
            prove(model, factorized(model, found, chosen), inputs)
        except ModelError as error:
            return error.what
        return ""

    if not found or not wrong(list(found)):
        return found
    left |= {name: f"the network is another without it: {why}" for name in found if (why := wrong([name]))}
    return {name: one for name, one in found.items() if name not in left}


def _shapes(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Sequence[Tensor]
) -> dict[str, list[tuple[tuple[int, ...], ...]]]:
    """By layer, the shapes of its input and output in each call."""
    seen: dict[str, list[tuple[tuple[int, ...], ...]]] = {name: [] for name in layers}
    names = {id(layer): name for name, layer in layers.items()}

    def note(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        seen[names[id(layer)]].append((tuple(given[0].shape), tuple(made.shape)))

    hooks = [layer.register_forward_hook(note) for layer in layers.values()]
    try:
        run(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen
