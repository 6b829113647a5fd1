"""Do two processes tune as well as one? The pruned residual CNN on Fashion-MNIST, three seeds.

    python benchmarks/pruning/two_processes.py [--jobs 1]
    python benchmarks/pruning/two_processes.py --table      the table of what was measured so far, in Markdown

75 % of the parameters go in one cut by the activation criterion; then five epochs of tuning, by one process
or by two that share each batch (DDP over gloo, both on the CPU). Gradients are averaged, so what differs is
that each has the batch norms' statistics of its own half. What was measured stands in
runs/two_processes.jsonl and is not measured again.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import (
    SEEDS,
    TUNING,
    Cell,
    command,
    found,
    markdown,
    missing_words,
    scores,
    spread,
)
from benchmarks.common.record import Row
from deadweight.pipeline.runs.seeds import paired
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.work import Work

RECORD = Path("runs") / "two_processes.jsonl"
PROCESSES = (1, 2)


def cells(network: str) -> list[Cell]:
    """Both, on every seed."""
    return [
        {"network": network, "processes": count, "seed": seed}
        for seed, count in itertools.product(SEEDS, PROCESSES)
    ]


def measure(cell: Cell, work: Work) -> Row:
    """One cut, tuned by so many processes."""
    pruned = Prune(parameters=0.75, align=False)(work)
    tuning = Finetune(epochs=TUNING[cell["network"]], processes=cell["processes"])
    tuned = tuning(dataclasses.replace(pruned, directory=work.directory / "tuned"))
    return {
        "original": scores(work, "original"),
        "raw": scores(pruned, "pruned"),
        "tuned": scores(tuned, "tuned"),
    }


def table(rows: Sequence[Row], network: str) -> str:
    """Test accuracy after tuning by one and by two, and the paired difference."""
    tuned = {
        count: {row["cell"]["seed"]: row["tuned"]["test"] for row in found(rows, {"processes": count})}
        for count in PROCESSES
    }
    lines = [[str(count), spread(list(tuned[count].values()))] for count in PROCESSES]
    both = sorted(tuned[1].keys() & tuned[2].keys())
    differences = [tuned[2][seed] - tuned[1][seed] for seed in both]
    words = paired(differences).words() if len(both) > 1 else "missing"
    told = f"Two less one, paired by seed: {words} points."
    return "\n\n".join(
        [
            f"{network}:",
            markdown(["processes", "test accuracy, %"], lines),
            told,
            missing_words(rows, cells(network)),
        ]
    )


if __name__ == "__main__":
    command(__doc__ or "", RECORD, ["cnn"], cells=cells, measure=measure, table=table)
