"""The table of segment times: every segment of a network, at the widths that its groups may have.

Layers timed alone and summed are far off: each alone pays for a call and for the layout of its input, and has
the cache for itself. So the table only orders; `latency` fits one weight a segment to whole networks. Equal
segments are timed once, whatever their names.
"""

from __future__ import annotations

import itertools
import random
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx

from ...export.onnx_graph.graph import OnnxModel, save
from ...export.onnx_graph.resize import Widths
from ...export.onnx_graph.segments import segments
from ...targets.progress import Progress
from ...targets.target import Target
from ..pruning.groups import Group
from .solve import Levels, Term

T = TypeVar("T")
Timed = Callable[[Mapping[str, Path]], Mapping[str, float]]
"""Seconds of one run of each file, timed together."""

FileAt = Callable[[Widths], onnx.ModelProto]
"""The network's file at these widths of its groups."""
CHUNK = 30
"""Files that are timed together, beside the dense network, by which chunks are made comparable."""
_EMPTY, _DENSE = "empty", "dense"


@dataclass(frozen=True, eq=False)
class SegmentTable:
    """Times of segments.

    Attributes:
        levels: by group, the widths it may have, ascending; the last is the dense one.
        names: of the segments.
        groups: of each segment, the groups whose widths change it.
        keys: of each segment, by its groups' widths, the key of its entry.
        seconds: by key; "empty" is a call that computes nothing.
        weights: by key, the bytes of the segment's constants.
    """

    levels: Levels
    names: tuple[str, ...]
    groups: tuple[tuple[str, ...], ...]
    keys: tuple[Mapping[tuple[int, ...], str], ...]
    seconds: Mapping[str, float]
    weights: Mapping[str, int]

    def part(self, segment: int, widths: tuple[int, ...]) -> float:
        """Seconds of a segment at the widths of its groups, without a call's own time."""
        return max(self.seconds[self.keys[segment][widths]] - self.seconds[_EMPTY], 0.0)

    def parts(self, widths: Widths) -> np.ndarray[Any, np.dtype[np.float64]]:
        """float64[segments]: seconds of each segment of a network, without a call's own time."""
        of_each = enumerate(self.groups)
        return np.array([self.part(at, tuple(widths[name] for name in own)) for at, own in of_each])

    def byte_terms(self) -> list[Term]:
        """What each segment's constants add to the file, in bytes."""
        pairs = zip(self.groups, self.keys, strict=True)
        return [Term(own, {at: float(self.weights[key]) for at, key in keys.items()}) for own, keys in pairs]


def levels_of(group: Group, target: Target, *, most: int = 8) -> tuple[int, ...]:
    """The widths that a group may have: multiples of the target's step, at most so many, evenly spaced."""
    rules = [target.align(kind) for kind in group.kinds]
    least = max(1, group.size // most)
    step = 2 ** (least.bit_length() - 1)
    wanted = [*range(least, group.size, step), group.size]
    widths = sorted({max(rule.rounded(keep, width=group.size) for rule in rules) for keep in wanted})
    at = np.linspace(0, len(widths) - 1, min(most, len(widths))).round().astype(int)
    return tuple(widths[place] for place in sorted(set(at.tolist())))


def table_of(
    file_at: FileAt,
    levels: Levels,
    timed: Timed,
    *,
    known: Mapping[str, float] = {},
    kept: Callable[[Mapping[str, float]], None] = lambda seconds: None,
    progress: Progress = lambda done, total, what: None,
) -> SegmentTable:
    """Times every segment at every combination of its groups' widths.

    Args:
        file_at: makes the network's file.
        timed: times files together, on the target.
        known: seconds by key of an earlier, interrupted call, and `kept` gets them after each chunk.
    """
    dense = {name: own[-1] for name, own in levels.items()}
    whole = _at(file_at, dense)
    names = tuple(name for name, _, _ in whole)
    groups: list[list[str]] = [[] for _ in names]
    for group, own in levels.items():
        if len(own) > 1:
            narrow = _at(file_at, {**dense, group: own[0]})
            for at, ((_, key, _), (_, other, _)) in enumerate(zip(whole, narrow, strict=True)):
                groups[at] += [group] if key != other else []
    keys: list[dict[tuple[int, ...], str]] = [{} for _ in names]
    models: dict[str, onnx.ModelProto] = {_EMPTY: _empty()}
    rng = random.Random(0)
    for at, several in enumerate(groups):
        for combination in itertools.product(*(levels[group] for group in several)):
            if combination in keys[at]:
                continue
            # The other groups' widths are drawn, so that one file serves many segments.
            drawn = {name: rng.choice(levels[name]) for name in levels}
            widths = {**drawn, **dict(zip(several, combination, strict=True))}
            for place, (_, key, model) in enumerate(_at(file_at, widths)):
                keys[place].setdefault(tuple(widths[group] for group in groups[place]), key)
                models.setdefault(key, model)
    weights = {key: sum(len(t.raw_data) for t in m.graph.initializer) for key, m in models.items()}
    missing = {key: key for key in models if key not in known}
    seconds = dict(known)
    for one in timed_in_chunks(missing, models.__getitem__, file_at(dense), timed, seconds):
        seconds |= one
        kept(seconds)
        progress(len(seconds) - len(known), len(missing), "budget: segments")
    return SegmentTable(levels, names, tuple(map(tuple, groups)), tuple(keys), seconds, weights)


def timed_in_chunks(
    items: Mapping[str, T],
    model_of: Callable[[T], onnx.ModelProto],
    dense: onnx.ModelProto,
    timed: Timed,
    known: Mapping[str, float],
) -> Iterator[dict[str, float]]:
    """Seconds of models, some at a time, in random order, each chunk relative to the dense network.

    The machine's speed differs between chunks: all are brought to the dense network's time in the first one,
    which `known` has where an earlier call was interrupted.
    """
    order, first = random.Random(1).sample(sorted(items), len(items)), known.get(_DENSE, 0.0)
    for start in range(0, len(order), CHUNK):
        with tempfile.TemporaryDirectory() as place:
            paths = {_DENSE: Path(place) / "dense.onnx"}
            save(dense, paths[_DENSE])
            for at, key in enumerate(order[start : start + CHUNK]):
                paths[key] = Path(place) / f"{at}.onnx"
                save(model_of(items[key]), paths[key])
            found = dict(timed(paths))
        reference = found.pop(_DENSE)
        first = first or reference
        yield {_DENSE: first} | {key: value * first / reference for key, value in found.items()}


def _at(file_at: FileAt, widths: Widths) -> Sequence[tuple[str, str, onnx.ModelProto]]:
    made = segments(OnnxModel(file_at(widths), Path()))
    return [(one.name, one.key(), one.model) for one in made]


def _empty() -> onnx.ModelProto:
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["x"], ["y"])],
        _EMPTY,
        [value("x", onnx.TensorProto.FLOAT, [1, 8])],
        [value("y", onnx.TensorProto.FLOAT, [1, 8])],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
