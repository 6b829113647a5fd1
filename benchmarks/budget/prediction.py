"""How well the table and the fitted prediction of the stage budget forecast whole networks of other widths.

    python benchmarks/budget/prediction.py [--table]

Five untrained networks. The prediction is fitted to 60 networks of random widths and forecasts 60 others,
timed twice: the second time is the noise floor. Beside it: multiply-adds through three points, and the sum
of the segments timed alone. One row a network in runs/budget_prediction.jsonl.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.record import Row, measure_missing
from benchmarks.zoo.own_networks import YoloLike
from deadweight.export.onnx_graph.counts import count
from deadweight.export.onnx_graph.graph import save
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.budget.latency import fitted
from deadweight.pipeline.budget.table import levels_of, table_of, timed_in_chunks
from deadweight.pipeline.pruning.groups import choose
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.stages.budget import QUICK, resizable, seconds_of
from deadweight.targets.target import load_target
from deadweight.targets.timing.clock import time_together

FITTED, HELD_OUT = 60, 60
Floats = np.ndarray[Any, np.dtype[np.float64]]


class Depthwise(nn.Module):
    """Depthwise separable convolutions on images of 96 x 96."""

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()

        def conv(before: int, after: int, kernel: int, stride: int, groups: int = 1) -> nn.Sequential:
            made = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
            return nn.Sequential(made, nn.BatchNorm2d(after), nn.ReLU())

        layers = [conv(3, widths[0], 3, 2)]
        for before, after in itertools.pairwise(widths):
            layers += [conv(before, before, 3, 2 if before > 32 else 1, before), conv(before, after, 1, 1)]
        self.features, self.head = nn.Sequential(*layers), nn.Linear(widths[-1], 10)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(self.features(image).mean((2, 3)))
        return scores


class SmallViT(nn.Module):
    """A vision transformer of four layers on images of 32 x 32."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, batch_first=True, norm_first=True)
        self.layers, self.head = (
            nn.TransformerEncoder(layer, 4, enable_nested_tensor=False),
            nn.Linear(width, 10),
        )

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.layers(self.patches(image).flatten(2).transpose(1, 2))
        scores: Tensor = self.head(tokens.mean(1))
        return scores


def networks() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]:
    """By name, the network and the size of a sample."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "fashion_mnist"))
    from workload import LargeMlp, ResidualNet

    return {
        "MLP": (LargeMlp, (1, 28, 28)),
        "residual CNN": (ResidualNet, (1, 28, 28)),
        "depthwise": (Depthwise, (3, 96, 96)),
        "small ViT": (SmallViT, (3, 32, 32)),
        "YOLO-like": (YoloLike, (3, 64, 64)),
    }


def measured(name: str, events: int) -> list[Row]:
    """One network: table, fit and forecast."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    build, sample = networks()[name]
    model, example = build().eval(), {"image": torch.randn(2, *sample)}
    groups = trace(model, example)
    dense = {group.name: group.size for group in groups}
    scores = {group.name: torch.arange(group.size, 0, -1.0) for group in groups}
    levels = {group.name: levels_of(group, load_target("x86-cpu")) for group in groups}
    rng = random.Random(0)

    def exported(widths: Mapping[str, int], form: str = "") -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            to_onnx(apply(model, choose(groups, scores, keep=widths), groups, form=form), example, path)
            return onnx.load(path)

    def drawn(number: int) -> list[dict[str, int]]:
        return [{each: rng.choice(own) for each, own in levels.items()} for _ in range(number)]

    def timed(files: Mapping[str, Path]) -> dict[str, float]:
        protocol = replace(QUICK, events=events)
        return {each: seconds_of(one) for each, one in time_together(files, protocol=protocol).items()}

    least = {each: own[0] for each, own in levels.items()}
    file_at = resizable(exported, dense, least, drawn(2))
    table = table_of(file_at, levels, timed)
    some = [dense, *drawn(FITTED + HELD_OUT)]
    names = {str(at): widths for at, widths in enumerate(some)}

    def whole() -> Floats:
        found: dict[str, float] = {}
        for chunk in timed_in_chunks(names, file_at, file_at(dense), timed, {}):
            found |= chunk
        return np.array([found[key] for key in names])

    first, second = whole(), whole()
    latency = fitted(table, some[: FITTED + 1], first[: FITTED + 1].tolist())
    held, true = some[FITTED + 1 :], first[FITTED + 1 :]
    predicted = latency.predicted(held)
    macs = np.array([_macs(file_at(widths)) for widths in some], float)
    points = np.argsort(macs)[[0, len(macs) // 2, -1]]
    by_macs = np.interp(macs[FITTED + 1 :], macs[points], first[points])
    alone = np.array([table.parts(widths).sum() for widths in held])
    again = second[FITTED + 1 :] * np.median(first / second)
    return [
        {
            "network": name,
            "groups": len(groups),
            "entries": len(table.seconds),
            "dense_s": first[0],
            "covered": float(np.mean(np.abs(np.log(predicted / true)) <= np.log(latency.factor))),
            "factor": latency.factor,
            "errors": {
                "predicted": (predicted / true - 1).tolist(),
                "multiply-adds": (by_macs / true - 1).tolist(),
                "segments alone": (alone / true - 1).tolist(),
                "measured again": (again / true - 1).tolist(),
            },
        }
    ]


def _macs(model: onnx.ModelProto) -> int:
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model.onnx")
        return count(Path(folder) / "model.onnx").macs


def table_text(rows: Sequence[Row]) -> str:
    """Median, 90 % and largest error of each forecast, in Markdown."""
    kinds = list(rows[0]["errors"]) if rows else []
    lines = [f"| network | groups | entries | {' | '.join(kinds)} | interval covers |"]
    lines.append("| --- " * (4 + len(kinds)) + "|")
    for row in rows:
        cells = []
        for kind in kinds:
            parts = np.quantile(np.abs(row["errors"][kind]), (0.5, 0.9, 1.0))
            cells.append(" / ".join(f"{100 * part:.1f}" for part in parts) + " %")
        covered = f"{row['covered']:.0%} (x{row['factor']:.3f})"
        lines.append(
            f"| {row['network']} | {row['groups']} | {row['entries']} | {' | '.join(cells)} | {covered} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    measure_missing(
        __doc__, Path("runs/budget_prediction.jsonl"), networks(), "network", measured, table_text
    )
