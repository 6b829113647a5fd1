"""Networks for a table: of a module with its traced groups, or of an ONNX file alone."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from ...export.onnx_graph.channels import channels_of
from ...export.onnx_graph.graph import OnnxModel
from ...export.onnx_graph.resize import Resizable, Widths
from ...export.to_onnx import to_onnx
from ...targets.errors import ModelError
from ...targets.target import Target
from ..pruning.groups import Groups, choose
from ..pruning.surgery import apply
from .grids import FileAt, Network
from .solve import Levels
from .table import levels_of, wider

FINEST = 16
"""How many widths of a group a table may have where its time bends; 8 at first."""


def of_file(model: OnnxModel, target: Target) -> Network:
    """An ONNX file: its layers at narrower widths, and at the next whole steps above.

    Raises:
        ModelError: no width of it can change.
    """
    found, resizable = channels_of(model)
    levels = {
        one.name: tuple(
            sorted({*levels_of(one.size, one.kinds, target), *wider(one.size, one.kinds, target)})
        )
        for one in found
    }
    finer = {one.name: levels_of(one.size, one.kinds, target, octave=FINEST) for one in found}
    return Network(resizable.at, levels, {one.name: one.size for one in found}, finer)


def of_module(
    model: nn.Module,
    groups: Groups,
    levels: Levels,
    example: Mapping[str, Tensor],
    *,
    seed: int,
    target: Target | None = None,
    after: Callable[[nn.Module], nn.Module] = lambda cut: cut,
) -> Network:
    """A module with its groups at these widths, whose files are made from a few exports.

    With a target, widths between them may be added by its alignment. `after` changes each cut network.
    """
    dense = {name: groups[name].size for name in levels}
    scores = {name: torch.arange(size, 0, -1.0) for name, size in dense.items()}

    def exported(widths: Widths, form: str = "") -> onnx.ModelProto:
        small = after(apply(model, choose(groups, scores, keep=widths), groups, form=form))
        with tempfile.TemporaryDirectory() as place:
            to_onnx(small, example, Path(place) / "model.onnx")
            return onnx.load(Path(place) / "model.onnx")

    narrow = {name: own[0] for name, own in levels.items()}
    checks = Network(exported, levels, dense).drawn(2, seed)
    own = [groups[name] for name in levels] if target else []
    finer = {one.name: levels_of(one.size, one.kinds, target, octave=FINEST) for one in own if target}
    return Network(resizable(exported, dense, narrow, checks), levels, dense, finer)


def unlike(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """A network as built, with other values in every parameter, in place.

    Equal constants, as in a new network, become one in a file, and would follow the widths of two groups.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in model.parameters():
            if each.is_floating_point():
                each.add_(torch.randn(each.shape, generator=generator).to(each), alpha=1e-3)
    return model


def resizable(
    exported: Callable[..., onnx.ModelProto], dense: Widths, least: Widths, checks: Sequence[Widths]
) -> FileAt:
    """Makes the file of any widths, from a few exports: of the user's class, or else of the graph form.

    Where neither can be resized, each file is an export, which takes longer.
    """
    for form in ("", "graph"):
        with contextlib.suppress(ModelError):
            return Resizable.learnt(partial(exported, form=form), dense, least=least, checks=checks).at
    return exported
