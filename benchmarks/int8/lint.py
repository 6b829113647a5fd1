"""Does lint find anything in what we quantize, and do NVIDIA's own parser and builder take it?

    python benchmarks/int8/lint.py [--rtx DIR] [--only NAME ...] [--limit 600]
    python benchmarks/int8/lint.py --table

Two networks of the example and twenty of the zoo, with random weights and lively norms: exported at opset
17, calibrated, written in TensorRT's dialect, and held against the rules for TensorRT 8.5, 8.6, 10.0 and
10.1. For 8.5 layer norms are spelled out, as the stage export does. With --rtx (see rtx_parser.py) the same
files go through NVIDIA's parser and builder. One process a row; runs/int8_lint.jsonl holds what is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common.record import Row, append, recorded

sys.path.insert(0, str(Path(__file__).parents[2]))


RECORD = Path("runs/int8_lint.jsonl")
VERSIONS = ("8.5", "8.6", "10.0", "10.1")
EXAMPLES = ("Mlp", "Cnn")
ZOO = (
    *("alexnet", "vgg11_bn", "squeezenet1_1", "googlenet", "resnet18", "resnet50", "resnext50_32x4d"),
    *("densenet121", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", "efficientnet_b0"),
    *("regnet_x_400mf", "convnext_tiny", "vit_tiny_patch16_224", "swin_t", "PilotNet", "PixelUNet"),
    *("YoloLike", "bert"),
)
SAMPLES = 8


def built(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """A network in eval mode, and `SAMPLES` inputs for it."""
    if name in EXAMPLES:
        sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "fashion_mnist"))
        import workload

        made = getattr(workload, name)()
        torch.manual_seed(0)
        shapes = {key: value.shape[1:] for key, value in made.example_inputs().items()}
        inputs = {key: torch.randn(SAMPLES, *shape) for key, shape in shapes.items()}
        return made.build_model().eval(), inputs
    from benchmarks.zoo.measure import lively
    from benchmarks.zoo.networks import NETWORKS

    network = next(one for one in NETWORKS if one.name == name)
    return lively(network), network.example(SAMPLES)


def row(name: str, rtx: Path | None) -> Row:
    """What lint says of one network, by version; and what NVIDIA's own tools say."""
    from deadweight.export.lint.check import lint
    from deadweight.export.onnx_graph.graph import load, save
    from deadweight.export.quantization.calibrate import calibrate
    from deadweight.export.quantization.to_qdq import to_qdq
    from deadweight.export.to_onnx import to_onnx

    torch.set_num_threads(1)
    model, inputs = built(name)
    example = {key: value[:2] for key, value in inputs.items()}
    found: Row = {"name": name, "lint": {}}
    with tempfile.TemporaryDirectory() as directory:
        files = {}
        for spelled in (False, True):
            plain, path = Path(directory) / f"{spelled}.onnx", Path(directory) / f"{spelled}_int8.onnx"
            to_onnx(model, example, plain, spell_out_layer_norm=spelled)
            float_ = load(plain)
            made = to_qdq(float_, calibrate(float_, [inputs]), dialect="tensorrt")
            save(made.model.proto, path)
            files[spelled] = path
        found["products"] = len(made.left_float) + len(made.in_int8)
        found["in_int8"] = len(made.in_int8)
        found["left_float"] = dict(Counter(reason.split(" (")[0] for reason in made.left_float.values()))
        for version in VERSIONS:
            report = lint(files[version == "8.5"], tensorrt=version)
            found["lint"][version] = [[one.severity, one.rule, one.node, one.what] for one in report.findings]
        if rtx is not None:
            from benchmarks.int8.rtx_parser import opinion

            started = time.monotonic()
            found["rtx"] = asdict(opinion(files[False], rtx))
            found["rtx_build_s"] = round(time.monotonic() - started, 1)
            found["rtx_8.5"] = opinion(files[True], rtx).refused
    return found


def counted(findings: list[list[Any]]) -> str:
    """Errors / warnings / notes, and which rules."""
    kinds = Counter(severity for severity, *_ in findings)
    rules = ", ".join(str(rule) for rule in sorted({rule for _, rule, *_ in findings}))
    numbers = " / ".join(str(kinds[kind]) for kind in ("error", "warning", "note"))
    return f"{numbers} ({rules})" if rules else numbers


def table(rows: list[Row]) -> str:
    """A Markdown table, a network a line."""
    lines = [
        "| network | products in INT8 | "
        + " | ".join(VERSIONS)
        + " | TensorRT-RTX builds it | products it runs in INT8 |",
        "| --- | --- | " + "--- | " * len(VERSIONS) + "--- | --- |",
    ]
    for one in rows:
        if "lint" not in one:
            lines.append(f"| {one['name']} | {one.get('crashed', one.get('gave_up'))} |")
            continue
        lint = " | ".join(counted(one["lint"][version]) for version in VERSIONS)
        rtx = one.get("rtx")
        built = "not asked" if rtx is None else rtx["refused"][:60] or "yes"
        types = Counter(rtx["products"].values()) if rtx else Counter()
        lines.append(
            f"| {one['name']} | {one['in_int8']} of {one['products']} | {lint} | {built} | "
            f"{types['Int8']} of {types.total()} |"
        )
    return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Lint, and NVIDIA's parser, over what we quantize.")
    parser.add_argument("--rtx", type=Path, help="folder of TensorRT-RTX's wheels")
    parser.add_argument("--only", nargs="+", default=[*EXAMPLES, *ZOO], metavar="NAME")
    parser.add_argument("--limit", type=float, default=600, help="seconds a network may take")
    parser.add_argument("--record", type=Path, default=RECORD)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(row(given.one, given.rtx)))
        return
    known = {one["name"] for one in recorded(given.record)}
    given.record.parent.mkdir(parents=True, exist_ok=True)
    for name in () if given.table else [name for name in given.only if name not in known]:
        command = [sys.executable, __file__, "--one", name, *(["--rtx", str(given.rtx)] if given.rtx else [])]
        started = time.monotonic()
        try:
            process = subprocess.run(command, capture_output=True, text=True, timeout=given.limit)
            lines = process.stdout.strip().splitlines()
            made = json.loads(lines[-1]) if process.returncode == 0 else {"crashed": process.stderr[-800:]}
        except subprocess.TimeoutExpired:
            made = {"gave_up": f"no answer in {given.limit:.0f} s"}
        made = {"name": name, "wall_s": round(time.monotonic() - started, 1), **made}
        append(given.record, made)
        print(f"{name}: {made['wall_s']} s", file=sys.stderr)
    rows = {one["name"]: one for one in recorded(given.record)}
    print(table([rows[name] for name in given.only if name in rows]))


if __name__ == "__main__":
    main()
