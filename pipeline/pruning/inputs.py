"""A network's inputs as they come: by position or by name, nested, and of other sizes.

A graph takes and returns flat tensors. Here is how an example is bound to forward's parameters, in which
order its tensors are, and which other sizes there are to try.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter, Signature
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...export.opened import opened, tensors_of
from ...targets.errors import ModelError


class Inputs(NamedTuple):
    """The arguments of one call: `model(*args, **named)`."""

    args: tuple[Any, ...]
    named: dict[str, Any]


@dataclass(frozen=True)
class Resizing:
    """A forward pre-hook by which a network resizes its images, the tensors of four axes, before anything.

    Bilinear, without a filter against aliasing: runtimes have no operator for one.
    """

    size: tuple[int, ...]

    def __call__(self, module: nn.Module, args: Any, named: Any) -> Any:
        return pytree.tree_map_only(Tensor, self._resized, (args, named))

    def _resized(self, value: Tensor) -> Tensor:
        if value.dim() != 4 or tuple(value.shape[2:]) == self.size:
            return value
        return F.interpolate(value, size=self.size, mode="bilinear", align_corners=False)


Example = Mapping[str, Any] | Sequence[Any] | Inputs
"""The arguments, by name or in order: tensors, or lists, tuples, dicts and dataclasses of them."""


def inputs_of(model: nn.Module, example: Example) -> Inputs:
    """The example as arguments of `model`: by position where possible, else by name.

    Names that forward does not know are the user's own, for arguments in order.

    Raises:
        ModelError: it is a single tensor, whose rows would be read as the inputs; it does not fit forward's
            parameters; or its names are in another order than those.
    """
    given: object = example
    if isinstance(given, Inputs):
        return given
    if not isinstance(given, (Mapping, Sequence)):
        kind = f"tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise ModelError(
            f"The example inputs are one {kind}, not a collection of tensors.",
            'Give a tuple, even of one tensor: (x,), or a mapping: {"image": x}.',
        )
    if not tensors_of(example):
        raise ModelError("There are no example inputs.", "Give at least one tensor, with a batch of two.")
    named = dict(given) if isinstance(given, Mapping) else {}
    values = [*named.values()] if isinstance(given, Mapping) else [*given]
    signature = inspect.signature(model.forward)
    takes_any = any(one.kind == Parameter.VAR_KEYWORD for one in signature.parameters.values())
    known = [name for name, one in signature.parameters.items() if one.kind not in _REST]
    by_name = set(named) <= set(known) or (takes_any and not set(named).isdisjoint(known))
    try:
        bound = signature.bind(**named) if named and by_name else signature.bind(*values)
    except TypeError as error:
        raise ModelError(
            f"The network does not run on its example inputs: forward({', '.join(known)}): {error}.",
            "Check that model(*inputs) runs.",
        ) from error
    inputs = Inputs(bound.args, bound.kwargs)
    if any(one is not other for one, other in zip(_values(inputs), values, strict=True)):
        raise ModelError(
            f"The example inputs are {', '.join(named)}; forward takes {', '.join(known)}.",
            "Give them in the order of forward's parameters; those with a default may be left out.",
        )
    return inputs


_REST = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


def _values(inputs: Inputs) -> tuple[Any, ...]:
    return (*inputs.args, *inputs.named.values())


def with_tensors(inputs: Inputs, tensors: Iterable[Any]) -> Inputs:
    """The same arguments with other tensors, in the order of `tensors_of`."""
    leaves, spec = pytree.tree_flatten(opened(inputs))
    given = iter(tensors)
    made = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    result: Inputs = pytree.tree_unflatten(made, spec)
    return result


def names_of(model: nn.Module, inputs: Inputs) -> list[str]:
    """The parameters of forward that these arguments fill; those of `*xs` are xs_0, xs_1, ..."""
    names: list[str] = []
    for name, one in inspect.signature(model.forward).parameters.items():
        rest = range(len(inputs.args) - len(names))
        names += [f"{name}_{n}" for n in rest] if one.kind == Parameter.VAR_POSITIONAL else [name]
    return [*names[: len(inputs.args)], *inputs.named]


def flattened(model: nn.Module, inputs: Inputs) -> Callable[..., Any]:
    """The model's forward as a function of the example's tensors alone, its result opened.

    Its parameters have forward's names; the tensors of a nested argument are called xs_0, xs_1, ...
    """
    forward = model.forward
    names: list[str] = []
    for name, value in zip(names_of(model, inputs), _values(inputs), strict=True):
        held = range(len(tensors_of(value)))
        names += [name] if isinstance(value, Tensor) else [f"{name}_{n}" for n in held]

    def flat(*tensors: Any) -> Any:
        given = with_tensors(inputs, tensors)
        return opened(forward(*given.args, **given.named))

    signature = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])
    flat.__signature__ = signature  # type: ignore[attr-defined]
    return flat


def open_axes(tensors: Sequence[Tensor], *, every: bool) -> tuple[Any, ...]:
    """The dynamic shapes for torch.export: the first axis of every tensor, if all have the same size.

    Args:
        every: whether the other axes are open too, where the network allows it.
    """
    batches = {len(value) for value in tensors if value.dim()}
    first = 0 if len(batches) == 1 and min(batches) > 1 else 1
    opened = [range(first, value.dim() if every else min(value.dim(), 1)) for value in tensors]
    return tuple(dict.fromkeys(axes, torch.export.Dim.AUTO) or None for axes in opened)


def check_inputs(model: nn.Module, tensors: Sequence[Tensor]) -> None:
    """Checks that the network has values, and is on the device of its inputs."""
    held = (*model.parameters(), *model.buffers(), *tensors)
    if any(map(torch.nn.parameter.is_lazy, held)):
        raise ModelError("A lazy layer has an uninitialized parameter.", "Run model(*inputs) once before.")
    if empty := [one for one in tensors if one.dim() and not len(one)]:
        shape = tuple(empty[0].shape)
        raise ModelError(f"An example input is empty: its shape is {shape}.", "Give it a batch of two.")
    devices = {str(one.device) for one in held}
    if len(devices) > 1:
        raise ModelError(
            f"The network and its example inputs are on different devices: {', '.join(sorted(devices))}.",
            "Move them to one device: model.to(device), and each input to the same.",
        )


Axes = Mapping[str, Sequence[tuple[int, int]]]
"""By name, the axes (number of the input, axis) that have one size and change together."""

BATCH = "batch"
UNKNOWN = "not compared at another"
"""What is said of an axis where there is no reference to compare with."""

_IMAGE = ("height", "width")


def is_image(axis: str) -> bool:
    """Whether an axis of this name is the height or the width of an image."""
    return axis.startswith(_IMAGE)


def axes_of(inputs: Sequence[Tensor]) -> Axes:
    """The axes whose size may change: the batch, those of images, and all others of one size together."""
    found: dict[str, list[tuple[int, int]]] = {}
    tensors = [(number, one) for number, one in enumerate(inputs) if one.dim()]
    if len({len(one) for _, one in tensors}) == 1:
        found[BATCH] = [(number, 0) for number, _ in tensors]
    others: dict[int, list[tuple[int, int]]] = {}
    for number, one in tensors:
        for axis in range(2 if one.dim() > 3 else 1, one.dim()):
            if one.dim() > 3 and axis >= one.dim() - 2:
                word = _IMAGE[axis - one.dim()]
                same = all(inputs[known].shape[at] == one.shape[axis] for known, at in found.get(word, ()))
                found.setdefault(word if same else f"{word} of input {number}", []).append((number, axis))
            else:
                others.setdefault(one.shape[axis], []).append((number, axis))
    for places in others.values():
        number, axis = places[0]
        tokens = any(at == 1 and not inputs[of].is_floating_point() for of, at in places)
        word = "sequence length" if tokens else f"length of axis {axis}"
        found[word if word not in found else f"{word} of input {number}"] = places
    return found


def doubled(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs with axes of size one twice as long, except batch and channels: torch.export fixes a size of
    one. Nothing if there are no such axes."""
    axes = {name: places for name, places in axes_of(inputs).items() if name != BATCH}
    ones = [place for places in axes.values() for place in places if inputs[place[0]].shape[place[1]] == 1]
    longer = dict.fromkeys(ones, 2)
    return [_stretched(one, number, longer) for number, one in enumerate(inputs)] if ones else []


def tried(
    inputs: Sequence[Tensor],
    axes: Axes,
    outcome: Callable[[list[Tensor]], str],
    *,
    one_sample: bool,
    several: bool = False,
    beyond: Collection[int] = (),
) -> dict[str, str]:
    """By axis, what `outcome` says of inputs of another size.

    Args:
        outcome: takes the inputs; "" is no answer: another size is tried. Of several axes that are changed
            at once only "same" is an answer, and UNKNOWN for all those of images.
        one_sample: whether one sample is enough where the batch is not what changes.
        several: whether another batch has more samples where it changes together with other sizes, not one.
        beyond: further sizes, larger ones, for what is no image; any other answer than "same" there counts.
    """

    def said_of(changed: dict[str, int]) -> str:
        if one_sample and BATCH in axes and BATCH not in changed:
            changed = {**changed, BATCH: 1}
        by_axis = {axis: size for name, size in changed.items() for axis in axes[name]}
        return outcome([_stretched(one, number, by_axis) for number, one in enumerate(inputs)])

    sizes = {name: inputs[places[0][0]].shape[places[0][1]] for name, places in axes.items()}
    found: dict[str, str] = {}
    for names, which in _attempts(axes):
        if not names or found.keys() & names:
            continue
        changed = {name: _other(sizes[name], place) for name, place in zip(names, which, strict=True)}
        if (
            changed.get(BATCH, 1) > sizes.get(BATCH, 1) > 1
            and not which[0]
            and not (several and len(names) > 1)
        ):
            changed[BATCH] = 1  # the cheapest
        said = said_of(changed)
        if said == "same" or (said and len(names) == 1) or (said == UNKNOWN and all(map(is_image, names))):
            found |= dict.fromkeys(names, said)
    for name in axes:
        larger = [one for one in sorted(beyond) if sizes[name] < one <= _LONGEST * sizes[name]]
        for size in larger if name != BATCH and not is_image(name) else ():
            said = said_of({name: size})
            found |= {name: said} if said not in ("", "same") else {}
    return {name: found.get(name, "") for name in axes}


_LONGEST = 4
"""Sizes that are more than this many times the example's are not tried: they cost too much."""


def _attempts(axes: Axes) -> Iterator[tuple[Sequence[str], Sequence[int]]]:
    """Names of axes to change at once, each with the number of the other size; at last each axis alone."""
    every = [*axes]
    yield every, [name.startswith(_IMAGE[1]) for name in every]
    images = [name for name in every if is_image(name)]
    yield images, [0] * len(images)
    yield images, [1] * len(images)
    for which in range(3):
        yield from (([name], [which]) for name in every if not which or name not in (BATCH, *_IMAGE))


def _other(size: int, which: int) -> int:
    """Another size: smaller ones are cheaper, and multiples of 32 suit most networks for images."""
    if size % 32 == 0 and size > 32:
        small, half = max(size // 256, 1) * 64 if size > 64 else 32, size // 64 * 32
        more = half if half > small else small + 32
        return (small, more if more < size else size + 32, size + 32)[which]
    return (max(size // 2, 1) if size > 2 else size + 1, size + (size + 1) // 2, size + 1)[which]


def _stretched(value: Tensor, number: int, sizes: Mapping[tuple[int, int], int]) -> Tensor:
    """The input at other sizes: a part of it, or repeated."""
    for (of, axis), size in sizes.items():
        if of == number:
            indices = torch.arange(size, device=value.device) % value.shape[axis]
            value = value.index_select(axis, indices)
    return value
