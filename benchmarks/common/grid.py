"""What the benchmarks on the examples share: cells measured in parallel, kept as lines of JSON, and resumed.

A cell is a dictionary of plain values that says what is tried; its figures are added to it and appended to
a .jsonl file as soon as they are there. A cell that stands in the file is not measured again, so a benchmark
can be stopped at any moment, and its tables name the cells that are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common.record import Row, append, recorded
from deadweight.pipeline.stages.statistics import Statistics
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.training.predict import score_of, torch_predict
from deadweight.pipeline.work import Variant, Work
from deadweight.pipeline.workload import Workload
from deadweight.pipeline.workloads.named import load_workload
from deadweight.targets.artifact import Artifact
from deadweight.targets.target import load_target

Cell = dict[str, Any]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EXAMPLE = EXAMPLES / "fashion_mnist"
WORKLOADS = {
    "mlp": "fashion_mnist/workload.py:Mlp",
    "lenet": "fashion_mnist/workload.py:Mlp",
    "cnn": "fashion_mnist/workload.py:Cnn",
    "detector": "detector/detector.py:Detector",
    "signs": "signs/signs.py:ResidualSigns",
    "depthwise": "signs/signs.py:DepthwiseSigns",
}
RUNS = Path("runs") / "grid"
SEEDS = (0, 1, 2)
EPOCHS = {"mlp": 8, "lenet": 8, "cnn": 10, "detector": 12, "signs": 10, "depthwise": 10}  # of the originals
TUNING = {"mlp": 5, "lenet": 5, "cnn": 5, "detector": 4, "signs": 1, "depthwise": 1}


class LeNet300(nn.Module):
    """784-300-100-10 (LeCun et al. 1998): 267 thousand parameters, hardly more than the task needs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.fc2 = nn.Linear(300, 100)
        self.head = nn.Linear(100, 10)

    def forward(self, image: Tensor) -> Tensor:
        scores: Tensor = self.head(F.relu(self.fc2(F.relu(self.fc1(image.flatten(1))))))
        return scores


@functools.cache
def workload_of(network: str) -> Workload:
    """An example's workload; that of "lenet" is the MLP's with LeNet-300-100."""
    workload = load_workload(WORKLOADS[network], EXAMPLES)
    if network == "lenet":
        workload.build_model = LeNet300  # type: ignore[method-assign]
    return workload


def original(network: str, seed: int) -> Work:
    """The trained original of a seed, with the statistics of its activations; made once."""
    place = RUNS / f"{network}-{seed}"
    torch.set_num_threads(1)
    work = Work(workload_of(network), load_target("x86-cpu"), place, seed, networks=NetworkFiles())
    if not (place / "done").exists():
        work = Statistics()(Train(epochs=EPOCHS[network])(work))
        (place / "done").touch()
        return work
    files = {"weights": Artifact.of(place / "original" / "model.safetensors")}
    work = work.with_variant(Variant("original", files))
    work = work.with_artifact("statistics", place / "statistics.safetensors")
    return work.logged("train", Train(epochs=EPOCHS[network]))


def scores(work: Work, name: str) -> Row:
    """Validation and test accuracy, in per cent, and parameters of a network of `work`."""
    model = work.model(work.variant(name))
    predict = torch_predict(model, work.workload.example_inputs())
    return {
        "validation": round(100 * score_of(work.workload, predict, "validation"), 4),
        "test": round(100 * score_of(work.workload, predict, "test"), 4),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def run(cells: Sequence[Cell], measure: Callable[[Cell, Work], Row], record: Path, *, jobs: int) -> None:
    """Measures the cells that are missing, the originals they start from first."""
    known = {_key(row["cell"]) for row in recorded(record)}
    missing = [cell for cell in cells if _key(cell) not in known]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context) as pool:
        starts = {(cell["network"], seed) for cell in missing for seed in SEEDS}
        for made in as_completed([pool.submit(_made, *start) for start in sorted(starts)]):
            made.result()
        waiting = [pool.submit(_measured, measure, cell) for cell in missing]
        for count, future in enumerate(as_completed(waiting), start=1):
            row = future.result()
            append(record, row)
            print(f"{count} of {len(missing)}: {row['cell']} {row.get('refused', '')}", file=sys.stderr)


def in_turn(cells: Sequence[Cell], measure: Callable[[Cell], Row], record: Path) -> None:
    """Measures the cells that are missing in this process, in their order."""
    torch.set_num_threads(1)
    known = {_key(row["cell"]) for row in recorded(record)}
    missing = [cell for cell in cells if _key(cell) not in known]
    for count, cell in enumerate(missing, start=1):
        started = time.monotonic()
        row = {"cell": cell, **measure(cell), "machine": machine()}
        append(record, {**row, "seconds": math.ceil(time.monotonic() - started)})
        print(f"{count} of {len(missing)}: {row}", file=sys.stderr)


def measured(measure: Callable[[Cell, Work], Row], cell: Cell) -> Row:
    """The figures of a cell from its original, in a folder that is gone afterwards."""
    work = original(cell["network"], cell["seed"])
    place = Path(tempfile.mkdtemp(prefix="cell-"))
    try:
        return measure(cell, dataclasses.replace(work, directory=place))
    finally:
        shutil.rmtree(place, ignore_errors=True)


def command(
    words: str,
    record: Path,
    networks: Sequence[str],
    *,
    cells: Callable[[str], list[Cell]],
    measure: Callable[[Cell, Work], Row],
    table: Callable[[list[Row], str], str],
    plot: Callable[[list[Row], Sequence[str], Path], None] | None = None,
) -> None:
    """The command line of a benchmark over cells: measures what is missing, and prints a table a network."""
    parser = argparse.ArgumentParser(description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(networks))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    if plot:
        parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    plotted: Path | None = getattr(given, "plot", None)
    if not given.table and not plotted:
        run([cell for network in given.networks for cell in cells(network)], measure, record, jobs=given.jobs)
    rows = recorded(record)
    if plot and plotted:
        plot(rows, given.networks, plotted)
    print("\n\n".join(table(rows, network) for network in given.networks))


def found(rows: Iterable[Row], wanted: Cell) -> list[Row]:
    """The rows of the cells that agree with `wanted`, whatever else they say."""
    return [row for row in rows if all(row["cell"].get(key) == value for key, value in wanted.items())]


def spread(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean and standard deviation over the seeds; how many, where they are not three."""
    if not values:
        return "missing"
    mean = f"{statistics.fmean(values):{'+' if sign else ''}.2f}"
    if len(values) == 1:
        return f"{mean} (n 1)"
    count = "" if len(values) == len(SEEDS) else f" (n {len(values)})"
    return f"{mean} ± {statistics.stdev(values):.2f}{count}"


def missing_words(rows: Sequence[Row], cells: Sequence[Cell]) -> str:
    """The cells that no row stands for, by name, the seeds of each together."""
    known = {_key(row["cell"]) for row in rows}
    absent = [cell for cell in cells if _key(cell) not in known]
    seeds: dict[str, list[str]] = {}
    for cell in absent:
        name = " ".join(str(value) for key, value in cell.items() if key != "seed")
        seeds.setdefault(name, []).append(str(cell["seed"]))
    names = [f"{name} (seed {', '.join(own)})" for name, own in seeds.items()]
    return f"Missing, {len(absent)} of {len(cells)} cells: {'; '.join(names)}." if absent else "None missing."


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    table = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in table)


def machine() -> str:
    """Where the figures were taken, in a sentence."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return f"torch {torch.__version__}, {device}, {os.cpu_count()} cores"


def _made(network: str, seed: int) -> None:
    original(network, seed)


def _measured(measure: Callable[[Cell, Work], Row], cell: Cell) -> Row:
    started = time.monotonic()
    row = measured(measure, cell)
    seconds = math.ceil(time.monotonic() - started)
    return {"cell": cell, **row, "seconds": seconds, "machine": machine()}


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)
