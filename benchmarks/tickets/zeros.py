"""Single weights against neurons at the same number of parameters: accuracy, bytes, and time on this machine.

    python benchmarks/tickets/zeros.py [--networks mlp cnn "cnn, untrained"]
    python benchmarks/tickets/zeros.py --table

Of each original 75 % of the parameters go in one cut: as whole neurons (the stage prune), or as single
weights of least magnitude, the same share of each layer ("weights") or the smallest of all ("weights,
global"). 2:4 drops half of the weights, two of every four neighbours; a layer whose inputs are no multiple
of 4 stays dense. All are tuned for as many epochs; zeros stay zero. Each network is exported to ONNX and
timed by turns with its original (ONNX Runtime, one thread, batch 1, fresh loads); a ratio is original over
candidate. An untrained network is only timed: no kernel here minds the values.
What was stated before it was measured: zeros gain no time, so that the whole interval lies within 0.90 to
1.10, and neurons gain more than BOUND.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import (
    SEEDS,
    TUNING,
    Cell,
    found,
    in_turn,
    markdown,
    measured,
    missing_words,
    scores,
    spread,
    workload_of,
)
from benchmarks.common.record import Row, recorded
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.compression.masks import load_masks
from deadweight.pipeline.importance.allocation import Scope
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.stages.sparsify import Sparsify
from deadweight.pipeline.stages.statistics import Statistics
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.pipeline.workload import example_batch
from deadweight.targets.target import load_target
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Protocol

RECORD = Path("runs") / "zeros.jsonl"
REMOVED = 0.75
BOUND = {"mlp": 2.0, "cnn": 1.3, "cnn, untrained": 1.3}
WITHIN = (0.90, 1.10)
DENSE = {"mlp": (), "cnn": ("stem",), "cnn, untrained": ("stem",)}  # one input channel
WAYS = ("neurons", "weights", "weights, global", "2:4")
PROTOCOL = Protocol(events=24)


def cells(network: str) -> list[Cell]:
    """Every way from every seed; of an untrained network, whose time alone counts, from one."""
    seeds = SEEDS[:1] if "untrained" in network else SEEDS
    return [{"network": network, "way": way, "seed": seed} for seed in seeds for way in WAYS]


def figures(cell: Cell) -> Row:
    """A cell from its trained original, or from an untrained one."""
    if "untrained" not in cell["network"]:
        return measured(measure, cell)
    with tempfile.TemporaryDirectory() as folder:
        fresh = Work(
            workload_of("cnn"), load_target("x86-cpu"), Path(folder), cell["seed"], networks=NetworkFiles()
        )
        return measure(cell, Statistics()(Train(epochs=0)(fresh)))


def measure(cell: Cell, work: Work) -> Row:
    """One network, made, tuned, scored, stored and timed against its original."""
    network, way = cell["network"], cell["way"]
    pruned = Prune(parameters=REMOVED)(work)
    pruned = dataclasses.replace(pruned, directory=work.directory / "tuned")
    epochs = TUNING.get(network, 0)
    if way == "neurons":
        name, made = "tuned", Finetune(epochs=epochs)(pruned)
    elif way == "2:4":
        stage = Sparsify(pattern="2:4", network="original", dense=DENSE[network], epochs=epochs)
        name, made = "sparse", stage(pruned)
    else:
        scope: Scope = "global" if "global" in way else "local"
        stage = Sparsify(like="pruned", network="original", scope=scope, epochs=epochs)
        name, made = "sparse", stage(pruned)
    variant = made.variant(name)
    tensors = {key: value.numpy() for key, value in made.model(variant).state_dict().items()}
    masks = load_masks(variant.path("masks"))[0] if "masks" in variant.files else {}
    left = sum(p.numel() for p in made.model(variant).parameters()) - sum(
        int((~m).sum()) for m in masks.values()
    )
    files = {}
    for one in ("original", name):
        files[one] = work.directory / f"{one}.onnx"
        to_onnx(made.model(made.variant(one)), example_batch(made.workload), files[one])
    timed = time_together(files, protocol=PROTOCOL)
    judged = judge(timed["original"], timed[name])
    return {
        **scores(made, name),
        "original": scores(made, "original"),
        "left": left,
        "bytes": stored_bytes(tensors, set(masks)),
        "file_bytes": files[name].stat().st_size,
        "latency_s": {one: timed[one].latency_s(50).value for one in files},
        "ratio": [judged.ratio, judged.low, judged.high],
        "outcome": judged.outcome,
        "events": judged.events,
        "clock": judged.clock,
    }


def stored_bytes(tensors: Mapping[str, NDArray[Any]], sparse: set[str]) -> dict[str, int]:
    """The least bytes of float32 tensors: those of `sparse` with a bitmask, or in compressed sparse rows."""
    size = {"dense": 0, "bitmask": 0, "csr": 0}
    for name, tensor in tensors.items():
        kept = 4 * int(np.count_nonzero(tensor))
        size["dense"] += 4 * tensor.size
        size["bitmask"] += -(-tensor.size // 8) + kept if name in sparse else 4 * tensor.size
        size["csr"] += 4 * len(tensor) + 6 * kept // 4 if name in sparse else 4 * tensor.size
    return size


def table(rows: Sequence[Row], network: str) -> str:
    """A row a way; the ratio of each seed with its interval."""
    lines, trained = [], "untrained" not in network
    for way in WAYS:
        here = sorted(found(rows, {"network": network, "way": way}), key=lambda row: int(row["cell"]["seed"]))
        if not here:
            lines.append([way, *["missing"] * 6])
            continue
        first = here[0]
        lines.append(
            [
                way,
                f"{first['left']:,}",
                spread([row["test"] - row["original"]["test"] for row in here], sign=True) if trained else "",
                f"{first['file_bytes']:,}",
                f"{first['bytes']['bitmask']:,}" if way != "neurons" else "",
                f"{first['bytes']['csr']:,}" if way != "neurons" else "",
                "; ".join("{:.2f} ({:.2f} to {:.2f})".format(*row["ratio"]) for row in here),
            ]
        )
    head = [
        "what went",
        "parameters left",
        "accuracy, change in points",
        "ONNX, bytes",
        "bitmask",
        "CSR",
        "speed-up, by seed",
    ]
    here = found(rows, {"network": network})
    whole = [row["original"]["test"] for row in here]
    score = f"original {spread(sorted(set(whole)))} %" if trained else "timed only"
    about = f"{network}: {score}, {REMOVED:.0%} of the parameters to go."
    return "\n\n".join(
        [about, markdown(head, lines), _claims(here, network), missing_words(rows, cells(network))]
    )


def _claims(rows: Sequence[Row], network: str) -> str:
    """Which of the statements held, over all seeds."""
    zeros = [row for row in rows if row["cell"]["way"] != "neurons"]
    neurons = [row for row in rows if row["cell"]["way"] == "neurons"]
    inside = sum(WITHIN[0] <= row["ratio"][1] and row["ratio"][2] <= WITHIN[1] for row in zeros)
    above = sum(row["ratio"][1] > BOUND[network] for row in neurons)
    return (
        f"Zeros: the whole interval within {WITHIN[0]:.2f} to {WITHIN[1]:.2f} in {inside} of {len(zeros)}. "
        f"Neurons: the whole interval above {BOUND[network]} in {above} of {len(neurons)}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--networks", nargs="+", default=list(BOUND))
    parser.add_argument("--table", action="store_true")
    given: Any = parser.parse_args()
    if not given.table:
        every = [cell for network in given.networks for cell in cells(network)]
        in_turn(sorted(every, key=lambda cell: int(cell["seed"])), figures, RECORD)
    print("\n\n".join(table(recorded(RECORD), network) for network in given.networks))


if __name__ == "__main__":
    main()
