"""The claim of the activation criterion: neurons whose activations stay near zero can go for almost nothing.

    python benchmarks/pruning/activation_claim.py [--networks mlp lenet] [--jobs 2]
    python benchmarks/pruning/activation_claim.py --table        the tables, in Markdown
    python benchmarks/pruning/activation_claim.py --plot FILE    the curves, as SVG

On the over-parameterised MLP (784-1024-512-10) and on the tight LeNet-300-100, Fashion-MNIST, three seeds:
thresholds on mean and deviation are swept, one cut and five epochs of tuning each. Published for the first
kind of network: 62 % fewer parameters for 0.08 points, 74 % for 0.5. Beyond them 90 to 96 % of the parameters
go, with fifteen epochs of recovery in several ways. Settings are chosen on the validation split. What was
measured stands in runs/activation_claim.jsonl and is not measured again.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import (
    EPOCHS,
    RUNS,
    SEEDS,
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
from deadweight.pipeline.stages.controls import Controls
from deadweight.pipeline.stages.distill import Distill
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.stages.statistics import Statistics
from deadweight.pipeline.work import Work
from deadweight.targets.errors import DeadweightError

RECORD = Path("runs") / "activation_claim.jsonl"
MEANS = (0.3, 0.7)
STDS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
FAR = {"mlp": (0.90, 0.92, 0.94, 0.96), "lenet": (0.90,)}
WAYS = ("finetune", "distill", "ensemble", "three cuts, distill", "scratch")
RECOVERY = 15  # epochs, in all ways
CUTS = 3
CLAIMS = ((0.62, 0.08), (0.74, 0.5), (0.90, 0.5))


def cells(network: str) -> list[Cell]:
    """Thresholds, and beyond."""
    swept: list[Cell] = [
        {"network": network, "mean": mean, "std": std, "seed": seed}
        for mean, std, seed in itertools.product(MEANS, STDS, SEEDS)
    ]
    far: list[Cell] = [
        {"network": network, "removed": removed, "way": way, "seed": seed}
        for removed, way, seed in itertools.product(FAR[network], WAYS, SEEDS)
    ]
    return swept + far


def measure(cell: Cell, work: Work) -> Row:
    """One setting: its network before and after recovery."""
    row: Row = {"original": scores(work, "original")}
    try:
        if "way" in cell:
            return row | _far(cell, work)
        pruned = Prune(mean=cell["mean"], std=cell["std"])(work)
    except DeadweightError as error:
        return {**row, "refused": error.what}
    tuned = Finetune(epochs=5)(dataclasses.replace(pruned, directory=work.directory / "tuned"))
    return {**row, "raw": scores(pruned, "pruned"), "tuned": scores(tuned, "tuned")}


def _far(cell: Cell, work: Work) -> Row:
    way = cell["way"]
    others = [RUNS / f"{cell['network']}-{seed}" for seed in SEEDS if seed != cell["seed"]]
    ensemble = tuple(str(place / "original" / "model.safetensors") for place in others)
    cuts, raw = CUTS if way.startswith("three") else 1, {}
    for cut in range(cuts):
        share = 1 - (1 - cell["removed"]) ** (1 / cuts)
        work = dataclasses.replace(work, directory=work.directory / str(cut))
        work = Prune(parameters=share, means=True)(Statistics()(work))
        if way == "scratch":
            made = Controls(random=False, epochs=EPOCHS[cell["network"]] + RECOVERY)(work)
            return {"tuned": scores(made, "scratch")}
        raw = scores(work, "pruned")
        if way == "finetune":
            work = Finetune(epochs=RECOVERY)(work)
        else:
            checkpoints = ensemble if way == "ensemble" else ()
            work = Distill(epochs=RECOVERY // cuts, checkpoints=checkpoints)(work)
    return {"raw": raw, "tuned": scores(work, "tuned")}


def _mean(rows: Sequence[Row], what: str, key: str) -> float:
    return statistics.fmean(row[what][key] for row in rows)


def _removed(rows: Sequence[Row]) -> float:
    return statistics.fmean(1 - row["tuned"]["parameters"] / row["original"]["parameters"] for row in rows)


def _change(rows: Sequence[Row], what: str, split: str) -> list[float]:
    return [row[what][split] - row["original"][split] for row in rows if what in row]


def settings(rows: Sequence[Row], network: str) -> list[tuple[str, list[Row]]]:
    """Every setting with the rows of its seeds, those that were cut by thresholds first."""
    by: dict[str, list[Row]] = {}
    for row in found(rows, {"network": network}):
        cell = row["cell"]
        name = (
            f"{cell['removed']:.0%} of the parameters, {cell['way']}"
            if "way" in cell
            else f"mean {cell['mean']}, std {cell['std']}"
        )
        by.setdefault(name, [])
        if "tuned" in row:
            by[name].append(row)
    return sorted(by.items(), key=lambda one: _removed(one[1]) if one[1] else 1.0)


def table(rows: Sequence[Row], network: str) -> str:
    """All settings of a network, and how the claims fare."""
    lines = []
    for name, here in settings(rows, network):
        if not here:
            lines.append([name, "refused", "", "", ""])
            continue
        removed = [100 * (1 - row["tuned"]["parameters"] / row["original"]["parameters"]) for row in here]
        raw = _change(here, "raw", "test")
        changes = [_change(here, "tuned", split) for split in ("validation", "test")]
        told = [spread(values, sign=True) for values in changes]
        lines.append([name, spread(removed), spread(raw, sign=True) if raw else "", *told])
    head = ["setting", "parameters removed, %", "raw, points", "tuned: validation", "tuned: test"]
    whole = [row["original"]["test"] for row in found(rows, {"network": network}) if "original" in row]
    about = f"{network}: original {spread(sorted(set(whole)))} % on the test split."
    claims = [claim(rows, network, removed, points) for removed, points in CLAIMS]
    return "\n\n".join([about, markdown(head, lines), "\n".join(claims), missing_words(rows, cells(network))])


def claim(rows: Sequence[Row], network: str, removed: float, points: float) -> str:
    """Whether a published point is met by the best setting on validation that removes enough."""
    enough = [
        (name, here)
        for name, here in settings(rows, network)
        if here and _removed(here) >= removed - 5e-4 and "scratch" not in name
    ]
    text = f"- {removed:.0%} fewer parameters for at most {points} points:"
    if not enough:
        return f"{text} not tried."
    name, here = max(enough, key=lambda one: statistics.fmean(_change(one[1], "tuned", "validation")))
    change = _change(here, "tuned", "test")
    met = "met" if statistics.fmean(change) >= -points else "not met"
    return f"{text} {met} ({name}: {_removed(here):.1%} for {spread(change, sign=True)})."


def plot(rows: Sequence[Row], networks: Sequence[str], path: Path) -> None:
    """The curves: change of test accuracy against parameters removed, the mean of the seeds a point.

    Of the network beside the first, which is tried at one size alone, the plain ways are enough.
    """
    series = {"published": [(100 * removed, -points) for removed, points in CLAIMS[:2]]}
    for number, network in enumerate(networks):
        for way in ("thresholds", *WAYS) if number == 0 else ("thresholds", "finetune", "scratch"):
            start, end = ("mean", "") if way == "thresholds" else ("", f" parameters, {way}")
            points = [
                (100 * _removed(here), statistics.fmean(_change(here, "tuned", "test")))
                for name, here in settings(rows, network)
                if here and name.startswith(start) and name.endswith(end)
            ]
            if points:
                series[f"{network}, {way}"] = points
    write_svg(
        path,
        series,
        x="parameters removed, %",
        y="test accuracy, change in points",
        x_range=(0, 100),
        y_range=(-2, 0.5),
    )


if __name__ == "__main__":
    command(
        __doc__ or "",
        RECORD,
        ["mlp", "lenet"],
        cells=cells,
        measure=measure,
        table=table,
        plot=plot,
    )
