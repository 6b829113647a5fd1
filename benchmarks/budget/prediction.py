"""How well the table and the fitted prediction of the stage budget forecast whole networks of other widths.

    python benchmarks/budget/prediction.py [--table]

Five untrained networks, three of them in INT8 too. The prediction is fitted to 60 networks of random widths
and forecasts 60 others, timed twice: the second time is the noise floor. Beside it: multiply-adds through
three points, and the sum of the segments timed alone. One row a network in runs/budget_prediction.jsonl.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.record import Row, measure_missing
from benchmarks.zoo.own_networks import YoloLike
from deadweight.export.onnx_graph.counts import count
from deadweight.export.onnx_graph.graph import OnnxModel, save
from deadweight.export.onnx_graph.resize import Widths
from deadweight.export.quantization.calibrate import calibrate
from deadweight.export.quantization.to_qdq import to_qdq
from deadweight.pipeline.budget.grids import Network
from deadweight.pipeline.budget.latency import of_table
from deadweight.pipeline.budget.measured import table_of
from deadweight.pipeline.budget.resized import of_module, unlike
from deadweight.pipeline.budget.table import levels_of
from deadweight.pipeline.pruning.trace import trace
from deadweight.targets.target import load_target
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.measurement import Measurement, Protocol

FITTED, HELD_OUT, INT8 = 60, 60, ", INT8"


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
    build, sample = networks()[name.removesuffix(INT8)]
    model, example = unlike(build()).eval(), {"image": torch.randn(2, *sample)}
    groups = trace(model, example)
    target = load_target("x86-cpu")
    levels = {group.name: levels_of(group.size, group.kinds, target) for group in groups}
    network = of_module(model, groups, levels, example, seed=0, target=target)
    if name.endswith(INT8):
        network = quantized(network, sample)
    path = Path("runs") / f"budget_prediction-{name.replace(' ', '_')}.json"
    path.parent.mkdir(exist_ok=True)

    def together(files: Mapping[str, Path], protocol: Protocol) -> Mapping[str, Measurement]:
        return time_together(files, protocol=replace(protocol, events=events))

    table = table_of(
        network, together, path, runtime="onnxruntime", networks=FITTED, twice=HELD_OUT, begun=print
    )
    latency, held = of_table(table), [table.drawn(key) for key in table.again]
    true = np.array([table.networks[key] for key in table.again])
    predicted = latency.predicted(held)
    fitted = {key: seconds for key, seconds in table.networks.items() if key not in table.again}
    macs = np.array([_macs(network.file_at(table.drawn(key))) for key in fitted], float)
    points, times = np.argsort(macs)[[0, len(macs) // 2, -1]], np.array([*fitted.values()])
    by_macs = np.interp([_macs(network.file_at(one)) for one in held], macs[points], times[points])
    alone = np.array([table.parts(widths).sum() for widths in held])
    return [
        {
            "network": name,
            "groups": len(table.levels),
            "entries": len(table.seconds),
            "dense_s": table.networks[table.network_key(table.dense)],
            "covered": float(np.mean(np.abs(np.log(predicted / true)) <= np.log(latency.factor))),
            "factor": latency.factor,
            "errors": {
                "predicted": (predicted / true - 1).tolist(),
                "multiply-adds": (by_macs / true - 1).tolist(),
                "segments alone": (alone / true - 1).tolist(),
                "measured again": table.noise().tolist(),
            },
        }
    ]


def quantized(network: Network, sample: tuple[int, ...]) -> Network:
    """The same network with every layer in INT8 that can be, by ranges of random images."""
    dense = OnnxModel(network.file_at(network.dense), Path())
    rng = np.random.default_rng(0)
    ranges = calibrate(dense, [{"image": rng.standard_normal((8, *sample)).astype(np.float32)}])

    def file_at(widths: Widths) -> onnx.ModelProto:
        return to_qdq(OnnxModel(network.file_at(widths), Path()), ranges, dialect="x86").model.proto

    return Network(file_at, network.levels, network.dense)


def _macs(model: onnx.ModelProto) -> int:
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder) / "model.onnx")
        return count(Path(folder) / "model.onnx").macs or 0


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


CASES = [*networks(), *(f"{name}{INT8}" for name in ("residual CNN", "depthwise", "MLP"))]

if __name__ == "__main__":
    measure_missing(__doc__, Path("runs/budget_prediction.jsonl"), CASES, "network", measured, table_text)
