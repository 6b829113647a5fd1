"""Whether the stage budget keeps its budgets: trained networks, four budgets each, judged again afterwards.

    python benchmarks/budget/kept.py [--seeds 0 1 2]     hours on one quiet core; resumable
    python benchmarks/budget/kept.py table

The stage itself keeps only networks that it has proven to be within the budget. So the network that it
returns is timed again, beside the original, as long as in the stage's proof. Within the
budget means: the upper bound of the share of the budget that is used, one-sided at 99 %, is at most 1. A
network whose median use is at most 1 and whose bound is above is not proven. One row a cell in
runs/budget_kept.jsonl.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import (
    Cell,
    found,
    in_turn,
    machine,
    markdown,
    missing_words,
    original,
    workload_of,
)
from benchmarks.common.record import Row, recorded
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.budget.solve import OutOfReachError
from deadweight.pipeline.stages.budget import Budget
from deadweight.pipeline.work import Work
from deadweight.targets.artifact import read_json
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Protocol

RECORD = Path("runs") / "budget_kept.jsonl"
NETWORKS = {
    "cnn": "residual CNN, Fashion-MNIST",
    "mlp": "MLP, Fashion-MNIST",
    "detector": "detector",
    "signs": "residual network, signs",
    "depthwise": "depthwise network, signs",
}
SHARES = dict.fromkeys(NETWORKS, (0.8, 0.6, 0.4, 0.25)) | {"detector": (0.9, 0.8, 0.65, 0.5)}
"""Budgets, as shares of the original's time. The detector's narrowest widths take 42 % of it."""
FULL = 0.95
STAGE = Budget(speedup=2.0, criterion="weight_l2", norms=16)
"""Its speed-up is replaced."""


def work_of(network: str, seed: int) -> Work:
    """The trained original in a folder where the stage keeps what all its budgets share: table and damage."""
    place = Path("runs") / "budget" / f"{network}-{seed}"
    return dataclasses.replace(original(network, seed), directory=place)


def cells(seeds: Sequence[int]) -> list[Cell]:
    """All networks and budgets of one seed come before the next seed."""
    return [
        {"network": network, "share": share, "seed": seed}
        for seed in seeds
        for network in NETWORKS
        for share in SHARES[network]
    ]


def measure(cell: Cell) -> Row:
    """One run of the stage, and the network that it found timed again."""
    work = work_of(cell["network"], cell["seed"])
    try:
        made = dataclasses.replace(STAGE, speedup=1 / cell["share"])(work)
    except OutOfReachError as error:
        return {"refused": error.what}
    tried = read_json(made.artifacts["search"].checked())["tried"]
    example = workload_of(cell["network"]).example_inputs()
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("original", "pruned")}
        for name, path in files.items():
            to_onnx(made.model(made.variant(name)), example, path)
        timed = time_together(files, protocol=Protocol(events=3 * STAGE.events))
    judged = judge(timed["original"], timed["pruned"], confidence=0.98)
    return {
        "tried": len(tried),
        "kept": sum(one["kept"] for one in tried),
        "used": 1 / cell["share"] / judged.ratio,
        "bound": 1 / cell["share"] / judged.low,
    }


def table(rows: Sequence[Row], wanted: Sequence[Cell]) -> str:
    """One line a network and budget, and what the promise asks for in words."""
    lines = []
    for network, title in NETWORKS.items():
        for share in SHARES[network]:
            here = found(rows, {"network": network, "share": share})
            used, bound = ([row[key] for row in here if key in row] for key in ("used", "bound"))
            refused = sum("refused" in row for row in here)
            if here:
                lines.append(
                    [
                        title,
                        f"{share:.0%}",
                        f"{sum(one <= 1 for one in bound)} of {len(used)}",
                        ", ".join(f"{one:.1%}" for one in used),
                        f"{max(bound, default=np.nan):.1%}",
                        f"{sum(one >= FULL for one in used)} of {len(used)}",
                        str(refused or ""),
                    ]
                )
    used, bound = ([row[key] for row in rows if key in row] for key in ("used", "bound"))
    proven, inside, full = sum(b <= 1 for b in bound), sum(u <= 1 for u in used), sum(u >= FULL for u in used)
    words = (
        f"Of {len(rows)} runs {len(used)} found one. Judged again, {proven} are proven within the budget, "
        f"{inside} are in the median, and {full} use at least {FULL:.0%} of it. {machine()}."
    )
    head = [
        "network",
        "budget",
        "within",
        "used, by seed",
        "largest bound",
        f"at least {FULL:.0%} used",
        "refused",
    ]
    return "\n\n".join([markdown(head, lines), words, missing_words(rows, wanted)])


def main() -> None:
    """Measures what is missing, or prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=["run", "table"], default="run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    if given.command == "run":
        in_turn(cells(given.seeds), measure, RECORD)
    print(table(recorded(RECORD), cells([0, 1, 2])))


if __name__ == "__main__":
    main()
