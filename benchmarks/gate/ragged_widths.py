"""Pruned, and no faster? Three networks at 98, 90 and 75 % of their width, ragged and at advised multiples.

    python benchmarks/gate/ragged_widths.py run      # adds what is missing to runs/demonstration/rows.jsonl
    python benchmarks/gate/ragged_widths.py table    # Markdown

PilotNet, MobileNetV2 and ResNet-18 with random weights (speed depends on widths alone), FP32 and INT8.
"Ragged" takes the share as it comes, "advised" rounds up to the target's multiples. Beside them the same
networks with 50 and 90 % of their single weights set to zero, which is what unstructured pruning leaves. All
variants of one network and precision are timed by turns in one process, as a whole and layer by layer. A
variant whose widths are those it came from is marked unchanged: it proves nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common.record import append, recorded
from benchmarks.zoo.networks import NETWORKS, Network
from deadweight.export.onnx_graph.graph import load, save
from deadweight.export.quantization.calibrate import calibrate
from deadweight.export.quantization.to_qdq import to_qdq
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.pruning.groups import BLOCKS, choose
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.stages.prune import alignment
from deadweight.targets.artifact import sha256_of
from deadweight.targets.machine.probe import cpu_name
from deadweight.targets.plain import plain
from deadweight.targets.target import load_target
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.layer_reasons import explained
from deadweight.targets.timing.layers import LayerJudgement, judge_layers
from deadweight.targets.timing.measurement import Protocol
from deadweight.targets.timing.ort_layers import time_layers

sys.path.insert(0, str(Path(__file__).parents[2]))


FOLDER = Path("runs/demonstration")
ROWS = FOLDER / "rows.jsonl"
NAMES = ("PilotNet", "mobilenet_v2", "resnet18")
SHARES, ZEROS = (98, 90, 75), (50, 90)
Row = dict[str, Any]


def variants(network: Network) -> dict[str, bool]:
    """Writes every variant's FP32 and INT8 files; by name, whether its widths differ from the original's."""
    folder = FOLDER / network.name
    kept = folder / "variants.json"
    if kept.exists():
        held: dict[str, bool] = json.loads(kept.read_text())
        return held
    folder.mkdir(parents=True, exist_ok=True)
    model, example = network.build(), network.example()
    groups = trace(model, example)
    generator = torch.Generator().manual_seed(3)
    scores = {
        group.name: torch.rand(group.size, generator=generator)
        for group in groups
        if group.kind not in BLOCKS
    }
    steps = alignment(load_target("x86-cpu"))
    made = {"original": False}
    _write(model, network, folder, "original")
    for share in SHARES:
        for how, align in (("ragged", None), ("advised", steps)):
            plan = choose(groups, scores, ratio=1 - share / 100, align=align)
            name = f"{share} % {how}"
            made[name] = any(plan.removed.values())
            _write(apply(model, plan, groups), network, folder, name)
    for share in ZEROS:
        made[f"{share} % zeros"] = False
        _write(_zeroed(network.build(), share / 100), network, folder, f"{share} % zeros")
    kept.write_text(json.dumps(made))
    return made


def _write(model: nn.Module, network: Network, folder: Path, name: str) -> None:
    path, example = folder / f"{name}.onnx", network.example()
    to_onnx(model, example, path)
    batches = [
        {key: value.numpy() for key, value in network.example(4, seed=seed).items()} for seed in range(2)
    ]
    float_ = load(path)
    made = to_qdq(float_, calibrate(float_, batches, method="minmax"), dialect="x86")
    save(made.model.proto, folder / f"{name} int8.onnx")


def _zeroed(model: nn.Module, share: float) -> nn.Module:
    """The same network with the smallest single weights of every layer at zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                least = parameter.abs().flatten().kthvalue(max(1, int(share * parameter.numel()))).values
                parameter[parameter.abs() <= least] = 0
    return model


def counted(judged: Sequence[LayerJudgement]) -> dict[str, int]:
    """The number of layers by kind of reason; for tables."""
    kinds = {
        "layout or type": "conversions",
        "multiple of": "alignment",
        "its launch": "launch",
        "by memory": "memory",
        "gain was not seen": "unseen",
        "none of the known": "unknown",
    }
    counts: dict[str, int] = {}
    for one in judged:
        for words, kind in kinds.items():
            if words in one.reason:
                counts[kind] = counts.get(kind, 0) + 1
    return counts


def measured(network: Network, precision: str) -> list[Row]:
    """Rows of all variants of one network in one precision."""
    changed = variants(network)
    end = " int8.onnx" if precision == "int8" else ".onnx"
    paths = {name: FOLDER / network.name / f"{name}{end}" for name in changed}
    load = os.getloadavg()[0]
    timed = time_together(paths, protocol=Protocol())
    layers = time_layers(paths)
    rows = []
    for name, differs in changed.items():
        if name == "original":
            continue
        whole = judge(timed["original"], timed[name])
        before, after = layers["original"], layers[name]
        each = explained(judge_layers(before, after), before, after, target=load_target("x86-cpu"))
        pruned = [one for one in each if one.pruned]
        rows.append(
            {
                "network": network.name,
                "precision": precision,
                "variant": name,
                "changed": differs,
                "judgement": whole.to_json(),
                "layers": Counter(one.outcome for one in each),
                "pruned_layers": Counter(one.outcome for one in pruned),
                "reasons": counted(pruned),
                "worst": [
                    plain(one) for one in sorted(pruned, key=lambda one: one.ratio)[:3] if one.ratio < 1
                ],
                "load": round(load, 1),
                "machine": cpu_name(),
                "sha256": sha256_of(paths[name]),
                "at": int(time.time()),
            }
        )
    return rows


def run() -> None:
    """Measures what is missing."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    done = {(row["network"], row["precision"]) for row in recorded(ROWS)}
    for name in NAMES:
        network = next(one for one in NETWORKS if one.name == name)
        for precision in ("fp32", "int8"):
            if (name, precision) in done:
                continue
            rows = measured(network, precision)
            append(ROWS, *rows)
            print(name, precision, [(row["variant"], row["judgement"]["outcome"]) for row in rows])


def table() -> None:
    """Markdown on stdout."""
    print("| network | precision | width | whole network | pruned layers: faster, slower, other | reasons |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in recorded(ROWS):
        found = row["judgement"]
        told = f"{found['outcome'].replace('_', ' ')}: {found['ratio']:.2f} ({found['low']:.2f} to "
        told += f"{found['high']:.2f})"
        if not row["changed"] and "zeros" not in row["variant"]:
            told = f"unchanged ({told})"
        counts = row["pruned_layers"]
        other = sum(count for name, count in counts.items() if name not in ("faster", "slower"))
        by = f"{counts.get('faster', 0)}, {counts.get('slower', 0)}, {other}" if counts else ""
        why = ", ".join(f"{name} {count}" for name, count in row["reasons"].items())
        cells = (row["network"], row["precision"], row["variant"], told, by, why)
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Measures, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    run() if parser.parse_args().what == "run" else table()


if __name__ == "__main__":
    main()
