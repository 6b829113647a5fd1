"""What calibrating ResNet-50 at 224 pixels costs in memory and time, beside running it and onnxruntime's way.

    python benchmarks/int8/calibration_memory.py [--samples 512] [--rival-samples 64] [--only ROW ...]
    python benchmarks/int8/calibration_memory.py --table

Random weights, synthetic images made eight at a time. Each row is a process of its own, on one thread: the
peak is its resident memory's, above what it had with the libraries loaded. "session" runs the same graph as
written, nothing fused, which is what calibration has to run; "fused" is for orientation. onnxruntime keeps
what it has collected, so it gets fewer samples, and its peak grows with them. Time is CPU time a sample.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.record import append, recorded
from benchmarks.int8.ort_reader import reader

sys.path.insert(0, str(Path(__file__).parents[2]))


Row = dict[str, Any]
FOLDER = Path("runs/calibration_memory")
RECORD = FOLDER.with_suffix(".jsonl")
OURS = ("minmax", "percentile", "entropy", "mse")
RIVAL = ("rival MinMax", "rival Entropy", "rival Percentile")
ROWS = ("session", "fused", *OURS, "all four", *RIVAL)
PIECE = 8


def images(samples: int) -> Iterator[dict[str, Any]]:
    """Synthetic images, made as they are asked for: smooth noise of different strength."""
    generator = np.random.default_rng(0)
    for start in range(0, samples, PIECE):
        count = min(PIECE, samples - start)
        coarse = generator.standard_normal((count, 3, 28, 28)) * generator.uniform(0.3, 1.5, (count, 1, 1, 1))
        yield {"x": coarse.repeat(8, axis=2).repeat(8, axis=3).astype(np.float32)}


def model() -> Path:
    """ResNet-50 with lively norms, exported once."""
    path = FOLDER / "resnet50.onnx"
    if not path.exists():
        from benchmarks.int8.lint import built
        from deadweight.export.to_onnx import to_onnx

        network, inputs = built("resnet50")
        path.parent.mkdir(parents=True, exist_ok=True)
        to_onnx(network, {name: value[:2] for name, value in inputs.items()}, path)
    return path


def session(path: Path, samples: int, *, fused: bool) -> None:
    """The forward passes alone."""
    from deadweight.export.onnx_graph.graph import load
    from deadweight.export.onnx_graph.run import runner

    run = runner(load(path).proto, optimize=fused)
    for feeds in images(samples):
        run(feeds)


def ours(path: Path, samples: int, methods: tuple[Any, ...]) -> None:
    """Our calibration."""
    from deadweight.export.onnx_graph.graph import load
    from deadweight.export.quantization.calibrate import Watched, calibrate_by

    calibrate_by(methods, Watched.of(load(path)), images(samples))


def rival(path: Path, samples: int, method: str) -> None:
    """onnxruntime's calibrator with its own defaults: min-max, or histograms."""
    import onnxruntime
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    onnxruntime.set_default_logger_severity(4)
    calibrator = create_calibrator(
        path,
        ["Conv", "Gemm", "Add", "MaxPool", "GlobalAveragePool"],
        augmented_model_path=str(FOLDER / "augmented.onnx"),
        calibrate_method=CalibrationMethod[method],
    )
    calibrator.collect_data(reader(images(samples)))
    calibrator.compute_data()


def measured(work: Callable[[], None], samples: int) -> Row:
    """Peak memory above the start, and CPU seconds a sample."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    started = time.process_time()
    work()
    cpu_s = time.process_time() - started
    return {"samples": samples, "peak_bytes": _status("VmHWM") - before, "cpu_s": cpu_s / samples}


def one(name: str, samples: int) -> Row:
    """One row, in this process."""
    import contextlib
    import importlib
    import os

    for name_ in (
        "onnx",
        "onnxruntime",
        "deadweight.export.quantization.calibrate",
    ):  # their own pages do not count
        importlib.import_module(name_)

    path = model()
    kind, _, method = name.partition(" ")
    jobs: dict[str, Callable[[], None]] = {
        "session": lambda: session(path, samples, fused=False),
        "fused": lambda: session(path, samples, fused=True),
        "all": lambda: ours(path, samples, OURS),
        "rival": lambda: rival(path, samples, method),
    }
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        return measured(jobs.get(kind, lambda: ours(path, samples, (name,))), samples)


def table(rows: list[Row]) -> str:
    """A Markdown table; ratios are to the unfused session."""
    known = {row["name"]: row for row in rows}
    base = known.get("session")
    lines = ["| what | samples | peak MB | x session | CPU s a sample | x session |", "| --- " * 6 + "|"]
    for name in ROWS:
        row = known.get(name)
        if row is None or base is None:
            continue
        if "cpu_s" not in row:
            lines.append(f"| {name} | {row['samples']} | {row['crashed']} | | | |")
            continue
        more = row["cpu_s"] / base["cpu_s"]
        lines.append(
            f"| {name} | {row['samples']} | {row['peak_bytes'] / 1e6:.0f} | "
            f"{row['peak_bytes'] / base['peak_bytes']:.2f} | {row['cpu_s']:.3f} | {more:.2f} |"
        )
    return "\n".join(lines)


def _status(field: str) -> int:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Memory and time of calibrating ResNet-50.")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rival-samples", type=int, default=32)
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.one, given.samples)))
        return
    model()
    known = {row["name"] for row in recorded(RECORD)}
    for name in () if given.table else [name for name in given.only if name not in known]:
        samples = given.rival_samples if name.startswith("rival") else given.samples
        command = [sys.executable, __file__, "--one", name, "--samples", str(samples)]
        process = subprocess.run(command, capture_output=True, text=True)
        lines = process.stdout.strip().splitlines()
        made = (
            json.loads(lines[-1])
            if process.returncode == 0
            else {"samples": samples, "crashed": f"ended with {process.returncode}: {process.stderr[-200:]}"}
        )
        append(RECORD, {"name": name, **made})
        print(f"{name}: {made}", file=sys.stderr)
    print(table(recorded(RECORD)))


if __name__ == "__main__":
    main()
