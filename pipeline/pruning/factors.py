"""Low-rank factorization of a layer into two or three: the factors' weights, and the modules.

Every method gives the weights of the low-rank layers in the order in which they run, at full rank; `cut`
takes the first columns and rows of each, which is the method's own result for lower ranks, so a network is
decomposed once for all ranks. Everything is computed in double precision.

Inserting such layers is a plan of the form "layers" (`relaid`): like a cut it is one of the network's plans,
so loading, pruning and training of pruned networks work for it too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ...targets.errors import ModelError
from .inputs import Resizing
from .narrow import copied_module
from .plan import Factors, Plan, Width, fingerprint, plan_of

Parts = tuple[Tensor, ...]
"""The weights of low-rank layers in the order in which they run: [outputs, inputs, ...] each."""


def svd(weight: Tensor) -> Parts:
    """A linear layer as two; when cut, the best approximation of its rank (Eckart and Young 1936)."""
    first, second = _split(weight.double().T)
    return first.T, second.T


def spatial(weight: Tensor) -> Parts:
    """A k x l convolution as k x 1, then 1 x l (Jaderberg et al. 2014, scheme 2, by SVD)."""
    outputs, inputs, height, width = weight.shape
    rows = weight.double().permute(1, 2, 0, 3).reshape(inputs * height, outputs * width)
    first, second = _split(rows)
    down = first.T.reshape(-1, inputs, height, 1)
    return down, second.reshape(-1, outputs, 1, width).transpose(0, 1)


def channel(weight: Tensor) -> Parts:
    """A k x l convolution as one to fewer channels, then 1 x 1 (Zhang et al. 2015, on the weight alone)."""
    first, second = _split(weight.double().flatten(1).T)
    return first.T.reshape(-1, *weight.shape[1:]), second.T[:, :, None, None]


def tucker(weight: Tensor) -> Parts:
    """A convolution as 1 x 1, k x l, 1 x 1 (Tucker-2: Kim et al. 2016), by higher-order SVD."""
    exact = weight.double()
    outputs = torch.linalg.svd(exact.flatten(1), full_matrices=False)[0]
    inputs = torch.linalg.svd(exact.transpose(0, 1).flatten(1), full_matrices=False)[0]
    core = torch.einsum("oihw,or,is->rshw", exact, outputs, inputs)
    return inputs.T[:, :, None, None], core, outputs[:, :, None, None]


METHODS: Mapping[str, Callable[[Tensor], Parts]] = {
    "svd": svd,
    "spatial": spatial,
    "channel": channel,
    "tucker": tucker,
}
NAMES: Mapping[int, tuple[str, ...]] = {2: ("reduce", "expand"), 3: ("reduce", "core", "expand")}
"""The names of low-rank layers, by their number."""


def cut(parts: Parts, ranks: Sequence[int]) -> Parts:
    """The low-rank layers at these ranks."""
    ends = (None, *ranks, None)
    return tuple(part[: ends[at + 1], : ends[at]] for at, part in enumerate(parts))


def full_ranks(parts: Parts) -> tuple[int, ...]:
    """The ranks at which nothing is lost."""
    return tuple(len(part) for part in parts[:-1])


def energies(parts: Parts) -> Tensor:
    """The share of the weight's square sum that is kept: at [rank - 1], or at both ranks - 1.

    The relative Frobenius error is exactly the root of one minus this share: all bases are orthogonal.
    """
    if len(parts) == 2:
        kept = parts[0].flatten(1).square().sum(1).square().cumsum(0)  # the singular value of each row
    else:
        kept = parts[1].square().sum((2, 3)).T.cumsum(0).cumsum(1)
    total = kept.flatten()[-1]
    return kept / total if total > 0 else torch.ones_like(kept)


def composed(method: str, parts: Parts) -> Tensor:
    """The weight of the single layer that computes the same, in double precision."""
    exact = [part.double() for part in parts]
    if method == "svd":
        return exact[1] @ exact[0]
    if method == "spatial":
        return torch.einsum("rih,orw->oihw", exact[0][:, :, :, 0], exact[1][:, :, 0, :])
    last = exact[-1][:, :, 0, 0]
    if method == "channel":
        return torch.einsum("rihw,or->oihw", exact[0], last)
    return torch.einsum("si,rshw,or->oihw", exact[0][:, :, 0, 0], exact[1], last)


def why_not(layer: nn.Module) -> str:
    """Why a layer cannot be factorized, or ""."""
    kind = type(layer)
    if kind not in (nn.Linear, nn.Conv2d):
        return f"it is a {kind.__name__}, and only torch's own Linear and Conv2d can be factorized"
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        depthwise = layer.groups == layer.in_channels
        return f"it is a {'depthwise' if depthwise else 'grouped'} convolution ({layer.groups} groups)"
    if {name for name, _ in layer.named_parameters(recurse=False)} - {"weight", "bias"}:
        return "its weight is computed from other parameters"
    if layer._forward_hooks or layer._forward_pre_hooks:
        return "it has hooks"
    return ""


def thin_layers(layer: nn.Module, factors: Factors) -> nn.Sequential:
    """The low-rank layers that replace `layer`, newly initialised, on its device and of its type.

    Raises:
        ModelError: the layer cannot be factorized, or not by this method, or does not have these ranks.
    """
    problem = why_not(layer)
    if problem:
        raise ModelError(f"A layer cannot be factorized: {problem}.", "Leave this layer out.")
    weight, ranks = layer.get_parameter("weight"), factors.ranks
    linear = isinstance(layer, nn.Linear)
    if factors.method not in METHODS or linear != (factors.method == "svd"):
        known = "svd" if linear else ", ".join(name for name in METHODS if name != "svd")
        what = f'The method "{factors.method}" is not for a {type(layer).__name__}.'
        raise ModelError(what, f"Choose among: {known}.")
    most = most_ranks(factors.method, tuple(weight.shape))
    if len(ranks) != len(most) or not all(0 < rank <= top for rank, top in zip(ranks, most, strict=False)):
        raise ModelError(
            f"A layer of shape {tuple(weight.shape)} cannot have the rank {joined(ranks)}: with the method "
            f"{factors.method} its full rank is {joined(most)}.",
            f"Give {'two numbers' if len(most) == 2 else 'a number'} from 1 to {joined(most)}.",
        )
    with torch.random.fork_rng(devices=[]):  # later initialisations do not depend on it
        made = _linears(layer, ranks) if linear else _convolutions(layer, factors)
    thin = nn.Sequential()
    for name, one in zip(NAMES[len(made)], made, strict=True):
        thin.add_module(name, one)
    return thin.to(weight.device, weight.dtype).requires_grad_(weight.requires_grad).train(layer.training)


def most_ranks(method: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The full ranks of a weight of this shape."""
    outputs, inputs, *kernel = shape
    if method == "spatial":
        return (min(inputs * kernel[0], outputs * kernel[1]),)
    taps = int(torch.Size(kernel).numel())
    if method == "tucker":
        return (min(inputs, outputs * taps), min(outputs, inputs * taps))
    return (min(outputs, inputs * taps),)


def relaying(
    model: nn.Module,
    reason: str,
    *,
    widths: Mapping[str, Width] = {},
    factors: Mapping[str, Factors] = {},
    ties: tuple[tuple[str, ...], ...] = (),
    resized: tuple[int, ...] = (),
) -> Plan:
    """A plan of the form "layers" for a network: its widths are those of the plan before, and these."""
    before = plan_of(model)
    return Plan(
        fingerprint(model),
        widths={**(before.widths if before else {}), **widths},
        form="layers",
        reason=reason,
        factors=dict(factors),
        ties=ties,
        resized=resized,
    )


def relaid(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of a network by a plan of the form "layers"; factorized layers have new values.

    Raises:
        ModelError: it has no such layers or parameters.
    """
    made = copied_module(model, {})
    modules = dict(made.named_modules(remove_duplicate=False))
    thin: dict[int, nn.Module] = {}
    for name, factors in plan.factors.items():
        if name not in modules:
            raise ModelError(f'The network has no layer "{name}".', "Give the network of this plan.")
        thin[id(modules[name])] = thin_layers(modules[name], factors)
    for name, module in modules.items():  # a layer that is used under two names stays one
        if id(module) in thin:
            made.set_submodule(name, thin[id(module)])
    for first, *others in plan.ties:
        kept = made.get_parameter(first)
        for name in others:
            owner, _, leaf = name.rpartition(".")
            if made.get_parameter(name).shape != kept.shape:
                raise ModelError(
                    f"{first} and {name} cannot be tied: their shapes are {tuple(kept.shape)} and "
                    f"{tuple(made.get_parameter(name).shape)}.",
                    "Tie parameters of one shape.",
                )
            setattr(made.get_submodule(owner), leaf, kept)
    if plan.resized:
        made.register_forward_pre_hook(Resizing(plan.resized), with_kwargs=True)
    return made


def _split(rows: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix as a product of two, with the root of each singular value in both, so that both train well."""
    left, values, right = torch.linalg.svd(rows, full_matrices=False)
    root = values.sqrt()
    return left * root, root[:, None] * right


def _linears(layer: nn.Module, ranks: Sequence[int]) -> list[nn.Module]:
    outputs, inputs = layer.get_parameter("weight").shape
    bias = layer.bias is not None
    return [nn.Linear(inputs, ranks[0], bias=False), nn.Linear(ranks[0], outputs, bias=bias)]


def _convolutions(layer: nn.Module, factors: Factors) -> list[nn.Module]:
    assert isinstance(layer, nn.Conv2d)
    outputs, inputs, height, width = layer.weight.shape
    first, last, bias = factors.ranks[0], factors.ranks[-1], layer.bias is not None

    def conv(wide: int, narrow: int, kernel: tuple[int, int], *, moves: str, bias: bool = False) -> nn.Conv2d:
        """A convolution with the strides, dilations and padding of the layer along the axes in `moves`."""
        along = ["h" in moves, "w" in moves]
        padding = layer.padding if isinstance(layer.padding, str) else _along(layer.padding, along, 0)
        stride, dilation = (_along(values, along, 1) for values in (layer.stride, layer.dilation))
        border, mode = padding if moves else 0, layer.padding_mode
        return nn.Conv2d(wide, narrow, kernel, stride, border, dilation, bias=bias, padding_mode=mode)

    if factors.method == "spatial":
        down = conv(inputs, first, (height, 1), moves="h")
        return [down, conv(first, outputs, (1, width), moves="w", bias=bias)]
    widen = conv(last, outputs, (1, 1), moves="", bias=bias)
    if factors.method == "channel":
        return [conv(inputs, first, (height, width), moves="hw"), widen]
    return [conv(inputs, first, (1, 1), moves=""), conv(first, last, (height, width), moves="hw"), widen]


def _along(values: Sequence[int], along: Sequence[bool], other: int) -> tuple[int, int]:
    """The values of the axes along which a low-rank convolution moves, and `other` for the rest."""
    one, two = (value if moves else other for value, moves in zip(values, along, strict=True))
    return one, two


def joined(ranks: Sequence[int]) -> str:
    """`4 and 8`."""
    return " and ".join(map(str, ranks))
