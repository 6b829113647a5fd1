"""INT8 against FP32 on ONNX Runtime, at full width and at half, through deadweight's own clock and judge.

    python benchmarks/int8/speed.py [--only NAME ...] [--events 24] [--again]
    python benchmarks/int8/speed.py --table

Random weights with lively norms. Half: every group of channels cut by half at random, widths rounded up to
what the x86 target advises. Beside our x86 dialect stands a native one: onnxruntime's quantize_static with
uint8 activations and its own calibration. All files of a network are timed by turns in one process, on one
thread, by that thread's CPU time. Files and rows are kept in runs/int8_speed; what is there is not made
again.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.common.record import append, recorded
from benchmarks.int8.lint import EXAMPLES, built
from benchmarks.int8.ort_reader import optimized, reader
from deadweight.export.onnx_graph.counts import count, float_kernels
from deadweight.export.onnx_graph.graph import load, save
from deadweight.export.quantization.calibrate import calibrate
from deadweight.export.quantization.to_qdq import to_qdq
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.pruning.groups import BLOCKS, choose
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.stages.prune import alignment
from deadweight.targets.target import load_target
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Protocol

sys.path.insert(0, str(Path(__file__).parents[2]))


Row = dict[str, Any]
NAMES = ("Cnn", "resnet18", "resnet50", "mobilenet_v2", "PilotNet", "vit_tiny_patch16_224")
FOLDER = Path("runs/int8_speed")
# baseline, candidate: what the table's columns compare
PAIRS = (("full", "full_int8"), ("full", "half"), ("half", "half_int8"), ("full", "half_int8"))
NATIVE = ("native", "full_int8")


def halved(model: nn.Module, example: dict[str, torch.Tensor]) -> nn.Module:
    """The network with half of each group of channels, at widths that the x86 target advises."""
    groups = trace(model, example)
    generator = torch.Generator().manual_seed(3)
    scores = {one.name: torch.rand(one.size, generator=generator) for one in groups if one.kind not in BLOCKS}
    plan = choose(groups, scores, ratio=0.5, align=alignment(load_target("x86-cpu")))
    return apply(model, plan, groups)


def native(path: Path, inputs: dict[str, torch.Tensor], out: Path) -> None:
    """onnxruntime's own static quantization: uint8 activations, int8 weights by channel."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    logging.disable(logging.WARNING)

    singles = (
        {key: value[place : place + 1].numpy() for key, value in inputs.items()}
        for place in range(len(next(iter(inputs.values()))))
    )
    quantize_static(
        str(path),
        str(out),
        reader(singles),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def files(name: str) -> dict[str, Path]:
    """The ONNX files of one network, made where they are missing."""
    folder = FOLDER / name
    paths = {key: folder / f"{key}.onnx" for key in ("full", "full_int8", "half", "half_int8", "native")}
    if all(path.exists() for path in paths.values()):
        return paths
    folder.mkdir(parents=True, exist_ok=True)
    model, inputs = built(name)
    example = {key: value[:2] for key, value in inputs.items()}
    for width, network in (("full", model), ("half", halved(model, example))):
        to_onnx(network, example, paths[width])
        float_ = load(paths[width])
        made = to_qdq(float_, calibrate(float_, [inputs]), dialect="x86")
        save(made.model.proto, paths[f"{width}_int8"])
    native(paths["full"], inputs, paths["native"])
    return paths


def row(name: str, protocol: Protocol) -> Row:
    """Ratios of one network, each with its interval."""
    torch.set_num_threads(1)
    paths = files(name)
    busy = os.getloadavg()[0]
    measured = time_together(paths, protocol=protocol)
    found: Row = {"name": name, "load": [round(busy, 1), round(os.getloadavg()[0], 1)], "ratios": {}}
    for baseline, candidate in (*PAIRS, NATIVE):
        told = judge(measured[baseline], measured[candidate])
        found["ratios"][f"{baseline}/{candidate}"] = [
            told.outcome,
            round(told.ratio, 3),
            round(told.low, 3),
            round(told.high, 3),
        ]
    clocks = {key: one.cpu_ns if one.cpu_ns is not None else one.wall_ns for key, one in measured.items()}
    found["ms"] = {
        key: round(float(np.median(ns)) / measured[key].wall_ns.shape[2] / measured[key].runs / 1e6, 4)
        for key, ns in clocks.items()
    }
    found["macs"] = {width: count(paths[width]).macs for width in ("full", "half")}
    found["bytes"] = {key: path.stat().st_size for key, path in paths.items()}
    found["left_in_float"] = {
        key: len(float_kernels(optimized(paths[key]))) for key in ("full_int8", "half_int8")
    }
    found["events"] = protocol.events
    one = measured["full"]
    found["conditions"] = {key: one.conditions[key] for key in ("machine", "software")}
    return found


def shown(ratio: list[Any]) -> str:
    outcome, middle, low, high = ratio
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]" + ("" if outcome in ("faster", "equal") else f" {outcome}")


def table(rows: list[Row]) -> str:
    """A Markdown table, a network a line; ratios are baseline time over candidate time."""
    heads = ("INT8", "half width", "INT8 at half width", "half width and INT8", "ours / native uint8")
    lines = [
        "| network | FP32 ms | " + " | ".join(heads) + " | left in float | load |",
        "| --- | --- | " + "--- | " * len(heads) + "--- | --- |",
    ]
    for one in rows:
        ratios = [shown(one["ratios"][f"{a}/{b}"]) for a, b in (*PAIRS, NATIVE)]
        lines.append(
            f"| {one['name']} | {one['ms']['full']:.3g} | {' | '.join(ratios)} | "
            f"{one['left_in_float']['full_int8']}, {one['left_in_float']['half_int8']} | {max(one['load'])} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="INT8 against FP32 on ONNX Runtime.")
    parser.add_argument("--only", nargs="+", default=list(NAMES), metavar="NAME", help=f"also {EXAMPLES}")
    parser.add_argument("--events", type=int, default=24)
    parser.add_argument("--again", action="store_true", help="measure what was measured before once more")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    record = FOLDER.with_suffix(".jsonl")
    known = {one["name"] for one in recorded(record)} if not given.again else set()
    for name in () if given.table else [name for name in given.only if name not in known]:
        made = row(name, Protocol(events=given.events))
        append(record, made)
        print(f"{name}: {made['ratios']}", file=sys.stderr)
    rows = {one["name"]: one for one in recorded(record)}  # the last of a name
    print(table([rows[name] for name in given.only if name in rows]))


if __name__ == "__main__":
    main()
