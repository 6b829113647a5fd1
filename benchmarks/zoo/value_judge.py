"""Whether a pruned network is still the function that its parts computed, whoever pruned it.

What was removed is recovered from values alone: each tensor of the pruned network must be a sub-tensor of the
original's. All else is zeroed in a copy of the original, in float64, and the two must be one function. Norms
and means over fewer channels renormalise, and attention takes its scale from the width of a head: where only
that differs, a second reference, which takes its statistics over the survivors, says so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, cycle
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from benchmarks.zoo.measure import floats
from benchmarks.zoo.networks import Network

PASS = 1e-4
SMALL = 65536
BY_HAND = ("RMSNorm", "T5LayerNorm", "CohereLayerNorm")  # how the names of such classes end


class WrongValuesError(Exception):
    """A tensor of the pruned network is no part of the original's."""


class UnjudgedError(Exception):
    """The reference can not be made, for a reason that is ours."""


def make_distinct(model: nn.Module) -> None:
    """Moves values that occur twice in a small tensor to free neighbours: each names its place then.

    In a large one float32 has no room for that, and every slice has enough values that occur once.
    """
    for name, tensor in _tensors(model).items():
        counts = isinstance(tensor, nn.Parameter) or "running_" in name
        if not counts or tensor.dtype != torch.float32 or not 1 < tensor.numel() <= SMALL:
            continue
        bits = tensor.detach().numpy().copy().ravel().view(np.int32).astype(np.int64)
        rising = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)  # in the order of the floats
        ranks, steps = np.argsort(rising, kind="stable"), np.arange(rising.size)
        rising[ranks] = np.maximum.accumulate(rising[ranks] - steps) + steps
        bits = np.where(rising < 0, -rising - 2**31, rising).astype(np.int32)
        with torch.no_grad():
            tensor.copy_(torch.from_numpy(bits.view(np.float32)).view(tensor.shape))


@dataclass
class Judged:
    """What was found of a pruned network, and what it was compared with.

    Attributes:
        verdict: "exact", "up to norms" or "wrong".
        error: of the outputs, relative to how far they move when the input is another one.
        reference: the original in float64, zero where the pruned network has nothing.
        pruned: the pruned network in float64.
        places: which slices of each tensor are left, by axis; of those that are narrower.
        attentions: of each call of attention, the width of its heads and the scale it was given.
    """

    reference: nn.Module
    pruned: nn.Module
    places: dict[str, tuple[NDArray[np.int64], ...]]
    verdict: str = "wrong"
    error: float = math.inf
    attentions: list[tuple[int, float | None]] = field(default_factory=list)

    @contextmanager
    def as_judged(self) -> Iterator[None]:
        """The reference computes what the pruned network was found to compute."""
        with ExitStack() as stack:
            if self.verdict != "exact":
                stack.enter_context(_over_survivors(self.reference))
                stack.enter_context(_scales(self.attentions))
            stack.enter_context(_no_fast_path())
            yield


def judge(original: nn.Module, small: nn.Module, network: Network) -> Judged:
    """The verdict on a pruned network, and the error.

    Raises:
        WrongValuesError: if the pruned network holds what the original does not, or other shapes come out.
        UnjudgedError: if one of the two does not run in float64, or outputs do not move with the input.
    """
    reference, pruned = copy.deepcopy(original).double(), copy.deepcopy(small).double()
    judged = Judged(reference, pruned, _zero_removed(reference, original, small))
    inputs, others = (doubled(network.example(seed=seed)) for seed in (1, 5))
    try:
        with torch.no_grad(), _no_fast_path():
            with _attentions(judged.attentions.append):
                found = floats(pruned(*inputs))
            plain, moved = floats(reference(*inputs)), floats(pruned(*others))
    except Exception as error:
        raise UnjudgedError(f"not run in float64: {type(error).__name__}: {error}") from error
    if [one.shape for one in found] != [one.shape for one in plain]:
        raise WrongValuesError(f"outputs of shape {[tuple(one.shape) for one in found]}")
    if not all(bool(torch.isfinite(one).all()) for one in plain):
        raise UnjudgedError("the reference is not finite: it divides by a norm of what was removed")
    moves = [float((a - b).abs().max()) for a, b in zip(found, moved, strict=True)]
    if not all(0 < move < math.inf for move in moves):
        raise UnjudgedError(f"outputs move by {moves} with the input")

    def error_of(expected: list[Tensor]) -> float:
        pairs = zip(expected, found, moves, strict=True)
        return max(float((a - b).abs().max()) / move for a, b, move in pairs)

    judged.error = error_of(plain)
    if judged.error < PASS:
        judged.verdict = "exact"
        return judged
    try:
        with torch.no_grad(), judged.as_judged():
            judged.error = error_of(floats(reference(*inputs)))
    except Exception as error:
        raise UnjudgedError(f"not run over survivors: {type(error).__name__}: {error}") from error
    judged.verdict = "up to norms" if judged.error < PASS else "wrong"
    return judged


def survivors(before: NDArray[Any], after: NDArray[Any]) -> tuple[NDArray[np.int64], ...]:
    """For each axis, where the slices of `after` were in `before`.

    Raises:
        WrongValuesError: if `after` is no sub-tensor of `before`.
        UnjudgedError: if values repeat so often that the place of a slice is open.
    """
    if before.ndim != after.ndim:
        raise WrongValuesError("another number of axes")
    order = np.argsort(before, axis=None)
    values = before.ravel()[order]
    once = np.r_[True, values[1:] != values[:-1]] & np.r_[values[1:] != values[:-1], True]
    found = []
    for axis, size in enumerate(after.shape):
        # Of a slice, so many values do: one of them occurs once.
        ends = [size if one == axis else 128 for one in range(after.ndim)]
        some = np.moveaxis(after[tuple(map(slice, ends))], axis, 0).reshape(size, -1)
        at = np.searchsorted(values, some).clip(max=values.size - 1)
        if (values[at] != some).any():
            raise WrongValuesError("values that the original does not have")
        if not once[at].any(1).all():
            raise UnjudgedError("values repeat")
        place = order[at[np.arange(size), once[at].argmax(1)]]
        found.append(place // math.prod(before.shape[axis + 1 :]) % before.shape[axis])
    if any(np.unique(one).size < one.size for one in found) or (before[np.ix_(*found)] != after).any():
        raise WrongValuesError("slices in no order that the original has")
    return tuple(found)


def _zero_removed(
    reference: nn.Module, original: nn.Module, small: nn.Module
) -> dict[str, tuple[NDArray[np.int64], ...]]:
    """Zeroes in the reference what the pruned network lacks; returns what is left."""
    before, after = _tensors(original), _tensors(small)
    found = {}
    for name, tensor in _tensors(reference).items():
        one, other = before[name].detach().numpy(), after[name].detach().numpy()
        if not one.ndim or np.array_equal(one, other):
            continue
        try:
            places = survivors(one, other)
        except (WrongValuesError, UnjudgedError) as error:
            raise type(error)(f"{name} {one.shape} -> {other.shape}: {error}") from error
        found[name] = places
        left = torch.zeros(one.shape, dtype=torch.bool)
        left[np.ix_(*places)] = True
        with torch.no_grad():
            tensor.masked_fill_(~left, 0.0)
    return found


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of floating point, also those that go by two names."""
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {name: one for name, one in named if one.is_floating_point()}


def doubled(example: dict[str, Any]) -> list[Any]:
    """Inputs in double precision, by position."""
    values: list[Any] = pytree.tree_map(
        lambda one: one.double() if one.is_floating_point() else one, list(example.values())
    )
    return values


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """The encoder layer's fast path would hide the norms that are watched here."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _standard(x: Tensor, left: Tensor, dims: list[int], eps: float, centred: bool) -> Tensor:
    """Norm over `dims`, of the elements that are left."""
    left = left.to(x.dtype)
    count = left.expand(x.shape).sum(dims, keepdim=True).clamp_min(1)  # a group may be gone as a whole
    if centred:
        x = x - (x * left).sum(dims, keepdim=True) / count
    x = x * left
    return x * (x.square().sum(dims, keepdim=True) / count + eps).rsqrt()


@contextmanager
def _over_survivors(reference: nn.Module) -> Iterator[None]:
    """Norms of the reference take their statistics over what is left: where their own weights are not zero.

    A norm without weights, and a mean, has those channels left that are not zero everywhere.
    """

    def left_of(x: Tensor, weight: Tensor | None, dims: list[int]) -> Tensor:
        if weight is None:
            return (x != 0).any(tuple(one for one in range(x.dim()) if one not in dims))
        return weight != 0

    def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        x = x if weight is None else x * weight
        return x if bias is None else x + bias

    def layer_norm(
        x: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        dims = list(range(x.dim() - len(shape), x.dim()))
        return affine(_standard(x, left_of(x, weight, dims), dims, eps, True), weight, bias)

    def rms_norm(x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
        dims = list(range(x.dim() - len(shape), x.dim()))
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        return affine(_standard(x, left_of(x, weight, dims), dims, eps, False), weight, None)

    def group_norm(
        x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
    ) -> Tensor:
        grouped, ones = x.reshape(len(x), groups, -1, *x.shape[2:]), [1] * (x.dim() - 2)
        left = left_of(x, weight, [1]).view(groups, -1, *ones)
        y = _standard(grouped, left, list(range(2, grouped.dim())), eps, True).flatten(1, 2)
        weight, bias = (one if one is None else one.view(-1, *ones) for one in (weight, bias))
        return affine(y, weight, bias)

    plain_batch_norm = F.batch_norm

    def batch_norm(
        x: Tensor,
        mean: Tensor | None,
        variance: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """Over the batch it is as it was; over a weight (standardisation) what is zero was removed."""
        if not training or mean is not None:
            return plain_batch_norm(x, mean, variance, weight, bias, training, momentum, eps)
        dims = [axis for axis in range(x.dim()) if axis != 1]
        weight, bias = (one if one is None else one.view(-1, *[1] * (x.dim() - 2)) for one in (weight, bias))
        return affine(_standard(x, x != 0, dims, eps, True), weight, bias)

    def response_norm(x: Tensor, *, module: Any) -> Tensor:
        """Woo et al. 2023, ConvNeXt V2, equation 2; as timm writes it."""
        weight, bias = module.weight.view(module.wb_shape), module.bias.view(module.wb_shape)
        left = left_of(x, module.weight, []).view(module.wb_shape)
        norm = x.norm(p=2, dim=module.spatial_dim, keepdim=True) * left
        mean = norm.sum(module.channel_dim, keepdim=True) / left.sum()
        out: Tensor = x + bias + weight * x * (norm / (mean + module.eps))
        return out

    plain_mean = Tensor.mean

    def mean(x: Tensor, dim: Any = None, *rest: Any, **settings: Any) -> Tensor:
        out = plain_mean(x, *rest, **settings) if dim is None else plain_mean(x, dim, *rest, **settings)
        if any(one % x.dim() == 1 for one in ([dim] if isinstance(dim, int) else dim or ())):
            out = out * (x.shape[1] / left_of(x, None, [1]).sum().clamp_min(1))
        return out

    for module in reference.modules():
        name = type(module).__name__
        if name.endswith(BY_HAND) and hasattr(module, "variance_epsilon"):
            norm = layer_norm if name == "CohereLayerNorm" else rms_norm
            weight: Any = module.weight
            eps: Any = module.variance_epsilon
            module.forward = partial(norm, shape=weight.shape, weight=weight, eps=eps)
        elif type(module).__name__ == "ConvNextV2GRN":
            module.forward = partial(response_norm, module=_as_timms(module))
        elif type(module).__name__ == "GlobalResponseNorm":
            module.forward = partial(response_norm, module=module)
    with (
        patch.object(F, "layer_norm", layer_norm),
        patch.object(F, "rms_norm", rms_norm),
        patch.object(F, "group_norm", group_norm),
        patch.object(F, "batch_norm", batch_norm),
        patch.object(Tensor, "mean", mean),
        patch.object(torch, "mean", mean),
    ):
        yield


def _as_timms(module: Any) -> SimpleNamespace:
    """What transformers' norm of responses holds, under the names that timm's has for it."""
    shape = {"spatial_dim": (1, 2), "channel_dim": -1, "wb_shape": (1, 1, 1, -1), "eps": 1e-6}
    return SimpleNamespace(weight=module.weight, bias=module.bias, **shape)


@contextmanager
def _attentions(seen: Callable[[tuple[int, float | None]], None]) -> Iterator[None]:
    """Tells of each attention, call by call, how wide its heads are and the scale that it is given."""
    own: Any = F.scaled_dot_product_attention

    def told(query: Tensor, *rest: Any, scale: float | None = None, **settings: Any) -> Tensor:
        seen((query.shape[-1], scale))
        out: Tensor = own(query, *rest, scale=scale, **settings)
        return out

    class Operators(TorchFunctionMode):
        """A graph calls the operator by another name."""

        def __torch_function__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            if isinstance(func, OpOverload) and "scaled_dot_product" in func.__name__:
                seen((args[0].shape[-1], (kwargs or {}).get("scale")))
            return func(*args, **(kwargs or {}))

    with patch.object(F, "scaled_dot_product_attention", told), Operators():
        yield


@contextmanager
def _scales(attentions: list[tuple[int, float | None]]) -> Iterator[None]:
    """Attention whose scale is not given has that of heads as wide as the pruned network's.

    Unless the pruned network gives the scale that the original has of itself.
    """
    own: Any = F.scaled_dot_product_attention
    left = cycle(attentions)

    def scaled(query: Tensor, *rest: Any, scale: float | None = None, **settings: Any) -> Tensor:
        width, given = next(left)
        before = query.shape[-1] ** -0.5
        if scale is None:
            kept = given is not None and math.isclose(given, before, rel_tol=1e-6)
            scale = before if kept else width**-0.5
        out: Tensor = own(query, *rest, scale=scale, **settings)
        return out

    with patch.object(F, "scaled_dot_product_attention", scaled):
        yield
