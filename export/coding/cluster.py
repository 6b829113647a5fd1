"""Weight clustering: one-dimensional k-means, with a code book for each tensor or one for all.

Han et al. 2016, "Deep Compression" (section 3): an index of 2 to 8 bits for each weight, and a code book of
the values. Pruned weights stay zero and need no entry. With an entropy coder a frequent index costs less, so
the nearest value is not the best one: `price` weighs the bits of an index against the error
(entropy-constrained quantization, Chou et al. 1989; Choi et al. 2017). Zero is then a value like any other,
and the cheapest where most weights are pruned: more weights may become zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from onnx import numpy_helper

from ...targets.errors import ModelError
from ..onnx_graph.external_data import array_of
from ..onnx_graph.graph import Array, load, save

Start = Literal["linear", "density", "random"]
ROUNDS = 100


@dataclass(frozen=True)
class Clusters:
    """Clustered tensors.

    Attributes:
        book: the values, float32, in order. Zero stands for pruned weights and is not among them.
        index: for each tensor, of its shape, int64: 0 for a weight that is zero, else its position in the
            book plus one.
    """

    book: Array
    index: Mapping[str, Array]

    def values(self, name: str) -> Array:
        """The clustered tensor, float32."""
        return np.asarray(np.concatenate([np.zeros(1, np.float32), self.book])[self.index[name]])


def cluster(
    tensors: Mapping[str, Array], bits: int, *, start: Start = "linear", price: float = 0.0, seed: int = 0
) -> Clusters:
    """Makes one code book of at most 2 ** bits values for all given tensors.

    Args:
        start: "linear" spreads the initial values evenly over the range, so that the few large weights, which
            matter most, have near values; "density" over the quantiles; "random" draws them.
        price: the cost of a bit of an index, in variances of the weights; 0 for plain k-means, 0.01 to 0.1 is
            useful. Where there are zeros already, more weights may become zero.

    Raises:
        ModelError: bits are not from 2 to 8, or a tensor has NaN or infinity.
    """
    _check_bits(bits)
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise ModelError(f"The weight {name!r} has NaN or infinity.", "Train or load it again.")
    flat = np.concatenate([np.asarray(tensor, np.float64).reshape(-1) for tensor in tensors.values()])
    kept = np.flatnonzero(flat)
    book, place = _one_dimensional(
        flat[kept], 1 << bits, start=start, price=price, seed=seed, zeros=len(flat) - len(kept)
    )
    index = np.zeros(len(flat), np.int64)
    index[kept] = place
    ends = np.cumsum([tensor.size for tensor in tensors.values()])
    parts = zip(tensors.items(), np.split(index, ends[:-1]), strict=True)
    shaped = {name: part.reshape(tensor.shape) for (name, tensor), part in parts}
    return Clusters(book.astype(np.float32), shaped)


def cluster_file(
    path: Path,
    out: Path,
    bits: int,
    *,
    bits_of: Mapping[str, int] | None = None,
    shared: bool = False,
    start: Start = "linear",
    price: float = 0.0,
) -> dict[str, int]:
    """Writes a model with clustered weights, and returns the number of values of each.

    Weights are float32 constants of two or more axes that are larger than the code book. Biases and code
    books are rounded to bfloat16.

    Args:
        bits_of: other numbers of bits for single weights, by name.
        shared: whether all weights of one number of bits share one code book.

    Raises:
        ModelError: no weight can be clustered, or `bits_of` names an unknown one.
    """
    for chosen in (bits, *(bits_of or {}).values()):
        _check_bits(chosen)
    model = load(path).proto
    wanted = dict(bits_of or {})
    float_tensors = {one.name: one for one in model.graph.initializer if one.data_type == 1}
    arrays = {name: array_of(one) for name, one in float_tensors.items()}
    weights = {
        name: array
        for name, array in arrays.items()
        if array.ndim > 1 and array.size > 4 << wanted.get(name, bits)
    }
    unknown = sorted(set(wanted) - set(weights))
    if unknown or not weights:
        lacking = f"weight {unknown[0]!r} that could be clustered" if unknown else "weights to cluster"
        raise ModelError(
            f"{path} has no {lacking}.", f"It has {', '.join(weights) or 'no large float32 constants'}."
        )
    groups: dict[object, dict[str, Array]] = {}
    for name, array in weights.items():
        chosen = wanted.get(name, bits)
        groups.setdefault((chosen, None if shared else name), {})[name] = array
    counts = {}
    for tensors in groups.values():
        made = cluster(tensors, wanted.get(next(iter(tensors)), bits), start=start, price=price)
        made = Clusters(shortened(made.book), made.index)
        for name in tensors:
            float_tensors[name].CopyFrom(numpy_helper.from_array(made.values(name), name))
            counts[name] = len(made.book)
    for name, array in arrays.items():
        if array.ndim == 1:
            float_tensors[name].CopyFrom(numpy_helper.from_array(shortened(array), name))
    save(model, out)
    return counts


def shortened(values: Array) -> Array:
    """float32 rounded to the nearest bfloat16, ties to even; NaN and infinity are unchanged.

    For biases and code books, which are few compared with the weights: they stay float32 in the file, and
    their lower halves are zero and cost nothing after coding. An 8-bit mantissa has an error of at most
    0.2 %; a code book's entries differ more from their weights.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
    result: Array = np.where(np.isfinite(values), rounded, bits).astype(np.uint32).view(np.float32)
    return result.reshape(np.shape(values))


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ModelError(f"A code book of {bits} bits was requested.", "Choose 2 to 8 bits.")


def _one_dimensional(
    values: Array, count: int, *, start: Start, price: float, seed: int, zeros: int
) -> tuple[Array, Array]:
    """The sorted values of a code book, and for each weight its position in it plus one (Lloyd 1982).

    Position 0 is zero, which stays; `zeros` weights have it already.
    """
    different = np.unique(values)
    if len(different) <= count:
        return different, np.searchsorted(different, values) + 1
    book = _initial(values, different, count, start, seed)
    costs = np.full(len(book) + 1, 0.0)
    costs[0] = np.inf
    weight = price * float(values.var())
    place = np.zeros(0, np.int64)
    for _ in range(ROUNDS):
        nearest = _nearest(values, book, costs)
        changed = 1.0 if len(place) == 0 else float((nearest != place).mean())
        sizes = np.bincount(nearest, minlength=len(book) + 1)
        sums = np.bincount(nearest, values, minlength=len(book) + 1)[1:]
        some = sizes[1:] > 0
        # An entry without members is removed.
        book = sums[some] / sizes[1:][some]
        place = np.concatenate([[0], np.cumsum(some)])[nearest]
        members = np.concatenate([[sizes[0] + zeros], sizes[1:][some]])
        with np.errstate(divide="ignore"):
            bits = -np.log2(members / members.sum())
        # Without a price only the nearest value counts, and zero is not among them.
        costs = np.append(np.inf, np.zeros(len(book))) if not price else weight * bits
        if changed < 1e-4 * bool(price) or not changed:
            break
    return book, place


def _initial(values: Array, different: Array, count: int, start: Start, seed: int) -> Array:
    if start == "linear":
        return np.asarray(np.linspace(values.min(), values.max(), count))
    if start == "density":
        return np.unique(np.quantile(values, (np.arange(count) + 0.5) / count))
    return np.sort(np.random.default_rng(seed).choice(different, count, replace=False))


def _nearest(values: Array, book: Array, costs: Array) -> Array:
    """The position plus one of the entry with the least squared distance and cost; 0 for zero."""
    if not costs[1:].any():
        return np.asarray(np.searchsorted((book[1:] + book[:-1]) / 2, values) + 1)
    whole = np.append(0.0, book)
    parts = [
        np.argmin((values[at : at + 65536, None] - whole) ** 2 + costs, axis=1)
        for at in range(0, len(values), 65536)
    ]
    return np.concatenate(parts)
