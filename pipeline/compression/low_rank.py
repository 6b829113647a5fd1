"""Low-rank factorization of a network's layers: the candidates, the factorized network, and its proof.

Low-rank layers are modules, but a network's code may read a layer's weight without calling the module
(torch's own encoder layer does so in its fast path). So the result is proven: it computes the same as the
full network whose weights are the products of the factors.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from ...targets.errors import ModelError, meant
from ...targets.target import Target
from ..pruning.compare import relative_error, run, tolerance
from ..pruning.factors import NAMES, composed, cut, most_ranks, relaid, relaying, why_not
from ..pruning.graphnet import GraphNet
from ..pruning.narrow import copied_module
from ..pruning.plan import Factors, Width, plan_of, record
from .rank_selection import Candidate, Choice

Convolution = Literal["spatial", "channel", "tucker"]

_CURE = "Name in `layers` those that its forward calls as modules."


def candidates(
    model: nn.Module,
    example: Mapping[str, Tensor],
    target: Target,
    *,
    convolution: Convolution = "spatial",
    layers: Sequence[str] = (),
) -> tuple[dict[str, Candidate], dict[str, str]]:
    """The layers that can be factorized, decomposed; and the others, each with the reason.

    Args:
        layers: only these; empty for all.

    Raises:
        ModelError: the network has no layer of a name in `layers`, or is in the graph form.
    """
    if isinstance(model, GraphNet):
        cure = "Put the stage factorize before the stage prune."
        raise ModelError("The network is in the graph form, whose layers are operators, not modules.", cure)
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
                why = "it is a low-rank layer already"
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
    return _without_unsound(model, found, left, list(example.values())), left


def factorized(
    model: nn.Module, candidates: Mapping[str, Candidate], chosen: Mapping[str, Choice]
) -> nn.Module:
    """A copy of the network with these layers factorized, by its plan; a ModelError if one cannot be."""
    factors = {name: Factors(candidates[name].method, choice.ranks) for name, choice in chosen.items()}
    widths = dict[str, Width]()
    for name, one in factors.items():
        most = most_ranks(one.method, tuple(model.get_submodule(name).get_parameter("weight").shape))
        for place, (top, rank) in enumerate(zip(most, one.ranks, strict=True)):
            widths[f"{name}.{NAMES[len(most) + 1][place]}"] = Width("rank", top, rank)
    plan = relaying(model, "layers of low rank", widths=widths, factors=factors)
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
    return record(thin, plan, of=model)


def prove(model: nn.Module, thin: nn.Module, inputs: Sequence[Tensor]) -> float:
    """The largest difference between the factorized network and the full one with the products as weights.

    Raises:
        ModelError: it exceeds rounding: some code reads a layer's weight without calling the layer.
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
            f"The network does not run with low-rank layers: {type(error).__name__}: {error}.", _CURE
        ) from error
    if wrong > 10 * tolerance([*expected, *found]):  # every low-rank layer sums in another order
        raise ModelError(f"The outputs of the network with low-rank layers are wrong by {wrong:.1e}.", _CURE)
    return wrong


def product_of(thin: nn.Module, name: str, factors: Factors) -> Tensor:
    """The weight that the low-rank layers of that name represent, in double precision."""
    layers = thin.get_submodule(name).children()
    return composed(factors.method, tuple(layer.get_parameter("weight").detach() for layer in layers))


def _without_unsound(
    model: nn.Module, found: dict[str, Candidate], left: dict[str, str], inputs: Sequence[Tensor]
) -> dict[str, Candidate]:
    """Leaves out the layers whose factorization makes the network fail or compute something else."""

    def wrong(names: Sequence[str]) -> str:
        middle = {name: tuple((top + 1) // 2 for top in found[name].energies.shape) for name in names}
        chosen = {name: found[name].at(ranks) for name, ranks in middle.items()}
        try:
            prove(model, factorized(model, found, chosen), inputs)
        except ModelError as error:
            return error.what
        return ""

    if not found or not wrong(list(found)):
        return found
    left |= {
        name: f"without it the network's outputs change: {why}" for name in found if (why := wrong([name]))
    }
    return {name: one for name, one in found.items() if name not in left}


def _shapes(
    model: nn.Module, layers: Mapping[str, nn.Module], inputs: Sequence[Tensor]
) -> dict[str, list[tuple[tuple[int, ...], ...]]]:
    seen: dict[str, list[tuple[tuple[int, ...], ...]]] = {name: [] for name in layers}
    names = {id(layer): name for name, layer in layers.items()}

    def note(layer: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        seen[names[id(layer)]].append((tuple(given[0].shape), tuple(made.shape)))

    with contextlib.ExitStack() as hooks:
        for layer in layers.values():
            hooks.enter_context(layer.register_forward_hook(note))
        run(model, inputs)
    return seen
