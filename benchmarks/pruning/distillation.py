"""Does it help to learn from teachers? Distillation against plain fine-tuning on Fashion-MNIST.

    python benchmarks/pruning/distillation.py [--networks mlp cnn] [--jobs 2]
    python benchmarks/pruning/distillation.py --table      the table of what was measured so far, in Markdown

75 and 90 % of the parameters go in one cut by the activation criterion; then ten epochs of recovery: by the
labels alone, with the original as teacher, and with an ensemble of three originals. Three seeds; the other
two originals are those of the other seeds. What was measured stands in runs/distillation.jsonl and is not
measured again.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import RUNS, SEEDS, Cell, command, found, markdown, missing_words, scores, spread
from benchmarks.common.record import Row
from deadweight.pipeline.runs.seeds import paired
from deadweight.pipeline.stages.distill import Distill
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.work import Work

RECORD = Path("runs") / "distillation.jsonl"
REMOVED = (0.75, 0.9)
WAYS = ("plain", "one teacher", "ensemble of three")
EPOCHS = 10


def cells(network: str) -> list[Cell]:
    """Every way at every size."""
    return [
        {"network": network, "removed": removed, "way": way, "seed": seed}
        for removed, way, seed in itertools.product(REMOVED, WAYS, SEEDS)
    ]


def measure(cell: Cell, work: Work) -> Row:
    """One way of recovery."""
    others = [RUNS / f"{cell['network']}-{seed}" for seed in SEEDS if seed != cell["seed"]]
    ensemble = tuple(str(place / "original" / "model.safetensors") for place in others)
    pruned = Prune(parameters=cell["removed"], align=False)(work)
    recoveries: dict[str, Finetune | Distill] = {
        "plain": Finetune(epochs=EPOCHS),
        "one teacher": Distill(epochs=EPOCHS),
        "ensemble of three": Distill(epochs=EPOCHS, checkpoints=ensemble),
    }
    tuned = recoveries[cell["way"]](dataclasses.replace(pruned, directory=work.directory / "tuned"))
    return {"original": scores(work, "original"), "tuned": scores(tuned, "tuned")}


def table(rows: Sequence[Row], network: str) -> str:
    """One row a way: change of test accuracy, and the paired difference from plain fine-tuning."""
    lines = []
    for way in WAYS:
        line = [way]
        for removed in REMOVED:
            wanted = {"network": network, "removed": removed}
            here = found(rows, {**wanted, "way": way})
            plain = {
                row["cell"]["seed"]: row["tuned"]["test"] for row in found(rows, {**wanted, "way": "plain"})
            }
            line.append(spread([row["tuned"]["test"] - row["original"]["test"] for row in here], sign=True))
            seeds = [row for row in here if row["cell"]["seed"] in plain]
            against = [row["tuned"]["test"] - plain[row["cell"]["seed"]] for row in seeds]
            line.append("" if way == "plain" else paired(against).words() if len(against) > 1 else "missing")
        lines.append(line)
    head = ["recovery"]
    for removed in REMOVED:
        head += [f"-{removed:.0%}, points", "less plain (95 % interval)"]
    return "\n\n".join([f"{network}:", markdown(head, lines), missing_words(rows, cells(network))])


if __name__ == "__main__":
    command(
        __doc__ or "",
        RECORD,
        ["mlp", "cnn"],
        cells=cells,
        measure=measure,
        table=table,
    )
