"""Do pruned networks train faster? One step of the optimizer: original, neuron-pruned and masked, by turns.

    python benchmarks/tickets/training_step.py [--networks mlp cnn] [--events 24]
    python benchmarks/tickets/training_step.py --table

A step is the project's own (pipeline/training/loop.py): forward, loss, backward, optimizer, and where single
weights were dropped their zeros set again. 75 % of the parameters went, as neurons or as single weights, and
at last half of the weights of what the neurons left; one batch of 128 images, torch on one thread. The
networks are untrained: no kernel here minds the values. The clock is that of every latency in this project:
fresh loads, turns of milliseconds in random order, events paired.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import machine, markdown, workload_of
from benchmarks.common.record import Row, append, recorded
from deadweight.pipeline.compression.masks import load_masks
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.stages.sparsify import Sparsify
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.loop import holding, train_step
from deadweight.pipeline.training.networks import NetworkFiles, load_network
from deadweight.pipeline.work import Work
from deadweight.pipeline.workload import Workload, example_batch
from deadweight.targets.runtimes.session import TensorSpec
from deadweight.targets.target import load_target
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Protocol

RECORD = Path("runs") / "training_step.jsonl"
REMOVED = 0.75
WAYS = ("neurons", "masked", "neurons and masked")


@dataclasses.dataclass
class Step:
    """A network that is ready to be trained, as the clock wants it: one run is one step."""

    run: Callable[..., Any]
    runtime: str = f"torch {torch.__version__}"
    evidence: str = "measured"
    inputs: tuple[TensorSpec, ...] = ()  # its batch is its own
    outputs: tuple[TensorSpec, ...] = ()

    def prepare(self, inputs: Mapping[str, Any]) -> Callable[[], object]:
        """The step itself."""
        return self.run

    def close(self) -> None:
        """Nothing is held beyond the object."""


def open_step(workload: Workload, path: Path, *, runtime: str, threads: int) -> Step:
    """The network of a folder with its optimizer, on one batch."""
    torch.set_num_threads(threads)
    model = load_network(workload, path.parent).train()
    kept = path.with_name("masks.safetensors")
    held = holding(model, load_masks(kept)[0] if kept.exists() else {})
    fabric = Fabric(accelerator="cpu", devices=1)
    wrapped, optimizer = fabric.setup(model, workload.optimizer(model))
    names = list(example_batch(workload))
    batch = next(iter(workload.batches("train", seed=0)))
    return Step(
        partial(train_step, fabric, wrapped, optimizer, workload.loss, batch, names, "a timing", held)
    )


def networks(network: str, place: Path) -> dict[str, Path]:
    """The files of the original and of what was made of it, untrained."""
    work = Train(epochs=0)(Work(workload_of(network), load_target("x86-cpu"), place, networks=NetworkFiles()))
    for stage in (
        Prune(parameters=REMOVED, criterion="weight_l2", norms=0),
        Sparsify(network="original", like="pruned"),
    ):
        work = stage(dataclasses.replace(work, directory=place / type(stage).__name__.lower()))
    files = {"original": "original", "neurons": "pruned", "masked": "sparse"}
    found = {way: work.variant(name).path("weights") for way, name in files.items()}
    both = Sparsify(network="pruned", share=0.5)(dataclasses.replace(work, directory=place / "both"))
    return {**found, "neurons and masked": both.variant("sparse").path("weights")}


def measure(network: str, events: int) -> list[Row]:
    """All networks timed by turns; a row for each against the original."""
    with tempfile.TemporaryDirectory() as folder:
        files = networks(network, Path(folder))
        timed = time_together(
            files,
            protocol=Protocol(events=events, runtime="torch"),
            opened=partial(open_step, workload_of(network)),
            progress=lambda done, total: print(f"{network}: {done} of {total}", file=sys.stderr),
        )
    rows = []
    for way in WAYS:
        found = judge(timed["original"], timed[way])
        rows.append(
            {
                "network": network,
                "way": way,
                "ratio": [found.ratio, found.low, found.high],
                "outcome": found.outcome,
                "events": found.events,
                "clock": found.clock,
                "remarks": list(found.remarks),
                "step_s": {one: timed[one].latency_s(50).value for one in ("original", way)},
                "machine": machine(),
            }
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """A row a network and way."""
    lines = [
        [
            row["network"],
            row["way"],
            f"{1e3 * row['step_s']['original']:.2f}",
            f"{1e3 * row['step_s'][row['way']]:.2f}",
            "{:.2f} ({:.2f} to {:.2f})".format(*row["ratio"]),
            row["outcome"].replace("_", " "),
            str(row["events"]),
        ]
        for row in rows
    ]
    head = [
        "network",
        "what went",
        "step of the original, ms",
        "its step, ms",
        "speed-up (95 %)",
        "verdict",
        "events",
    ]
    return markdown(head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=["mlp", "cnn"])
    parser.add_argument("--events", type=int, default=24)
    parser.add_argument("--table", action="store_true")
    given: Any = parser.parse_args()
    for network in [] if given.table else given.networks:
        if not any(row["network"] == network for row in recorded(RECORD)):
            append(RECORD, *measure(network, given.events))
    print(table(recorded(RECORD)))


if __name__ == "__main__":
    main()
