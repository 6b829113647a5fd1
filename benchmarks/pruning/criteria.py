"""Every criterion against both controls on Fashion-MNIST and the signs: raw and tuned, at equal size.

    python benchmarks/pruning/criteria.py [--networks mlp cnn signs] [--jobs 2]
    python benchmarks/pruning/criteria.py --table       the tables of what was measured so far, in Markdown
    python benchmarks/pruning/criteria.py --plot FILE   the curves, as SVG

Of each original 50, 75 and 90 % of the *parameters* go in one cut, equal shares of each group (the CNN: all
criteria at 75 %, four at the others). Then it is tuned. The controls are random neurons, tuned alike, and the
same small network trained from scratch for as many epochs as the chain. What was measured stands in
runs/criteria.jsonl and is not measured again.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import (
    EPOCHS,
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
from benchmarks.common.plot import write_svg
from benchmarks.common.record import Row
from deadweight.pipeline.importance.criteria import CRITERIA
from deadweight.pipeline.runs.seeds import paired
from deadweight.pipeline.stages.controls import Controls
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.work import Work
from deadweight.targets.errors import DeadweightError

RECORD = Path("runs") / "criteria.jsonl"
REMOVED = (0.5, 0.75, 0.9)
FEW = ("activation", "weight_l2", "taylor", "random")
GLOBAL = ("activation", "taylor", "lamp")
"""Criteria that are tried with one ranking across groups too, at 75 %."""


def cells(network: str) -> list[Cell]:
    """What is tried on a network; batch-norm scales need a batch norm."""
    names = [name for name in CRITERIA if name != "batch_norm" or network not in ("mlp", "lenet")]
    made: list[Cell] = []
    for removed in REMOVED:
        tried = names if network == "mlp" or removed == 0.75 else list(FEW)
        made += [_cell(network, seed, name, removed) for name in [*tried, "scratch"] for seed in SEEDS]
    made += [_cell(network, seed, name, 0.75, "global") for name in GLOBAL for seed in SEEDS]
    return made


def _cell(network: str, seed: int, criterion: str, removed: float, scope: str = "local") -> Cell:
    return {"network": network, "criterion": criterion, "removed": removed, "scope": scope, "seed": seed}


def measure(cell: Cell, work: Work) -> Row:
    """One cut, before and after tuning; or the same widths from scratch."""
    scratch = cell["criterion"] == "scratch"
    cut = Prune(
        parameters=cell["removed"],
        criterion="random" if scratch else cell["criterion"],
        scope=cell["scope"],
        normalise="none" if cell["criterion"] in ("taylor", "lamp") else "mean",
        align=False,
    )
    try:
        pruned = cut(work)
    except DeadweightError as error:
        return {"refused": error.what}
    row: Row = {"original": scores(work, "original")}
    if scratch:
        epochs = EPOCHS[cell["network"]] + TUNING[cell["network"]]
        made = Controls(random=False, epochs=epochs)(pruned)
        return {**row, "tuned": scores(made, "scratch")}
    tuned = Finetune(epochs=TUNING[cell["network"]])(
        dataclasses.replace(pruned, directory=work.directory / "t")
    )
    return {**row, "raw": scores(pruned, "pruned"), "tuned": scores(tuned, "tuned")}


def table(rows: Sequence[Row], network: str) -> str:
    """One row a criterion: change of test accuracy, raw and tuned, and the tuned difference from random."""
    lines = []
    tried = list(dict.fromkeys((cell["criterion"], cell["scope"]) for cell in cells(network)))
    for criterion, scope in tried:
        line = [criterion + (", global" if scope == "global" else "")]
        for removed in REMOVED:
            wanted = {"network": network, "criterion": criterion, "scope": scope, "removed": removed}
            if not any(all(cell[key] == value for key, value in wanted.items()) for cell in cells(network)):
                line += ["", "", ""]
                continue
            here = [row for row in found(rows, wanted) if "tuned" in row]
            twins = {
                row["cell"]["seed"]: row["tuned"]["test"]
                for row in found(rows, {**wanted, "criterion": "random", "scope": "local"})
                if "tuned" in row
            }
            line.append(
                spread([_change(row, "raw") for row in here if "raw" in row], sign=True)
                if criterion != "scratch"
                else ""
            )
            line.append(spread([_change(row, "tuned") for row in here], sign=True))
            seeds = [row for row in here if row["cell"]["seed"] in twins]
            against = [row["tuned"]["test"] - twins[row["cell"]["seed"]] for row in seeds]
            line.append(
                "" if criterion == "random" else paired(against).words() if len(against) > 1 else "missing"
            )
        lines.append(line)
    head = ["criterion"]
    for removed in REMOVED:
        head += [f"-{removed:.0%}: raw", "tuned", "tuned, less random"]
    whole = [row["original"]["test"] for row in found(rows, {"network": network}) if "original" in row]
    about = f"{network}: original {spread(sorted(set(whole)))} %; changes in points of test accuracy."
    refused = sorted(
        {
            f"{row['cell']['criterion']}: {row['refused']}"
            for row in found(rows, {"network": network})
            if "refused" in row
        }
    )
    return "\n\n".join([about, markdown(head, lines), missing_words(rows, cells(network)), *refused])


def plot(rows: Sequence[Row], networks: Sequence[str], path: Path) -> None:
    """Tuned test accuracy against size: a line a criterion, those that were tried at every size."""
    series = {}
    for network in networks:
        for criterion in (*FEW, "scratch"):
            points = []
            for removed in REMOVED:
                wanted = {"network": network, "criterion": criterion, "scope": "local", "removed": removed}
                changes = [_change(row, "tuned") for row in found(rows, wanted) if "tuned" in row]
                if changes:
                    points.append((100 * removed, statistics.fmean(changes)))
            series[f"{network}, {criterion}"] = points
    write_svg(
        path,
        series,
        x="parameters removed, %",
        y="test accuracy after tuning, change in points",
        x_range=(45, 95),
        y_range=(-2, 1),
    )


def _change(row: Row, what: str) -> float:
    return float(row[what]["test"] - row["original"]["test"])


if __name__ == "__main__":
    command(
        __doc__ or "",
        RECORD,
        ["mlp", "cnn"],
        cells=cells,
        measure=measure,
        table=table,
        plot=plot,
    )
