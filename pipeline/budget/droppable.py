"""Whole residual blocks as a choice of a budget: each stays or is dropped, beside the widths.

A block is one more group of the table, with the "widths" 0 and 1. Its nodes carry its name in the exported
file; what its readers take instead, and what stays of it (a shortcut), is learnt from one export without it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import Tensor, nn

from ...export.onnx_graph.external_data import whole_copy
from ...export.onnx_graph.graph import drop_unused
from ...export.onnx_graph.resize import Widths
from ...export.to_onnx import to_onnx
from ...targets.errors import ModelError
from ..pruning.blocks import find, removable
from ..pruning.bypass import dropping, shallower
from ..pruning.inputs import Example
from ..pruning.plan import Bypass, plan_of
from ..pruning.surgery import apply
from ..pruning.verify import verify
from .grids import Network

GONE, KEPT = 0, 1
_BLOCK = " (block)"


def dropped_in(widths: Widths) -> list[str]:
    """The paths of the blocks that are dropped at these widths."""
    return [name[: -len(_BLOCK)] for name, width in widths.items() if name.endswith(_BLOCK) and width == GONE]


def widths_in(widths: Widths) -> dict[str, int]:
    """These widths without the blocks."""
    return {name: width for name, width in widths.items() if not name.endswith(_BLOCK)}


@dataclass(frozen=True)
class _Cut:
    """What dropping a block changes in a file: its nodes by name, those instead, and what readers take."""

    inside: frozenset[str]
    instead: tuple[onnx.NodeProto, ...]
    renamed: Mapping[str, str]


def with_blocks(
    network: Network, model: nn.Module, example: Mapping[str, Tensor]
) -> tuple[Network, dict[str, Bypass], list[str]]:
    """The network with each block that can be dropped as a group, their replacements, and why others cannot.

    Raises:
        ModelError: none can be dropped.
    """
    dense = network.file_at(network.dense)
    cuts, bypasses, why = dict[str, _Cut](), dict[str, Bypass](), list[str]()
    found = find(model, example)
    for block in removable(found):
        assert block.bypass is not None
        with tempfile.TemporaryDirectory() as place:
            to_onnx(shallower(model, {block.path: block.bypass}), example, Path(place) / "model.onnx")
            cut = _learnt(dense, onnx.load(Path(place) / "model.onnx"), block.path)
        if cut is None:
            why.append(f"{block.path}: its part of the exported file is not apart from the rest")
        else:
            cuts[block.path], bypasses[block.path] = cut, block.bypass
    why += [f"{block.path}: {block.reason}" for block in found if block.reason]
    if not cuts:
        raise ModelError(
            f"No block can be chosen by a budget: {'; '.join(why)}.", 'Leave "blocks" out of choose.'
        )

    def file_at(widths: Widths) -> onnx.ModelProto:
        gone = [cuts[path] for path in dropped_in(widths)]
        file = network.file_at(widths_in(widths))
        return _without(file, gone) if gone else file

    groups = [f"{path}{_BLOCK}" for path in cuts]
    levels = {**network.levels, **dict.fromkeys(groups, (GONE, KEPT))}
    all_kept = {**network.dense, **dict.fromkeys(groups, KEPT)}
    return Network(file_at, levels, all_kept, network.finer), bypasses, why


def without_blocks(model: nn.Module, dropped: Mapping[str, Bypass], example: Example) -> nn.Module:
    """The network without these blocks, proven."""
    plan = dropping(model, dropped)
    small = apply(model, plan)
    verify(model, small, plan_of(small) or plan, example)
    return small


def _learnt(dense: onnx.ModelProto, shallow: onnx.ModelProto, path: str) -> _Cut | None:
    """What dropping a block changes in a file; None if more than its own nodes and their readers."""
    own = (f"{path}/", f"{path}.")
    before, after = ({node.name: node for node in model.graph.node} for model in (dense, shallow))
    constants = {tensor.name for tensor in dense.graph.initializer}
    renamed: dict[str, str] = {}
    for name in before.keys() & after.keys():
        if not name.startswith(own):
            pairs = zip(before[name].input, after[name].input, strict=False)
            renamed |= {old: new for old, new in pairs if old != new and old not in constants}
    cut = _Cut(
        frozenset(name for name in before if name.startswith(own)),
        tuple(node for name, node in after.items() if name.startswith(own)),
        renamed,
    )
    borrowed = {tensor.name for tensor in shallow.graph.initializer} - constants
    whole = not any(borrowed & {*node.input} for node in cut.instead)
    return cut if whole and _nodes(_without(dense, [cut])) == _nodes(shallow) else None


def _without(file: onnx.ModelProto, cuts: list[_Cut]) -> onnx.ModelProto:
    made, renamed = whole_copy(file), {old: new for cut in cuts for old, new in cut.renamed.items()}
    nodes, done = list[onnx.NodeProto](), set[int]()
    for node in file.graph.node:
        cut = next((one for one in cuts if node.name in one.inside), None)
        if cut is None:
            nodes.append(node)
        elif id(cut) not in done:
            done.add(id(cut))
            nodes += cut.instead
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    for node in made.graph.node:
        for at, name in enumerate(node.input):
            while name in renamed:
                name = renamed[name]
            node.input[at] = name
    drop_unused(made.graph)
    return made


def _nodes(model: onnx.ModelProto) -> set[tuple[str, ...]]:
    """The operators with the tensors between them; constants have the name of their first reader."""
    constants = {tensor.name for tensor in model.graph.initializer}
    ends = {node.name: [*(set(node.input) - constants), *node.output] for node in model.graph.node}
    return {(node.op_type, node.name, *sorted(ends[node.name])) for node in model.graph.node}
