"""How exact the stage budget's solver is, and what the table finds of a clock that was planted.

    python benchmarks/budget/exactness.py [--table]

networks   three small networks with measured tables, every plan enumerated, random damage: the objective
           against the best
tables     1,000 random planted tables: the objective against the best, and limits that were broken
clocks     planted clocks with steps of 8 to 64 units, overheads, and 5 % noise on every timing: the time of
           the plan against the least time of any plan that does no more damage, and the steps that were found

One row a case in runs/budget_exactness.jsonl.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.budget.planted import Clock, chain
from benchmarks.budget.prediction import Depthwise
from benchmarks.common.record import Row, measure_missing
from deadweight.export.onnx_graph.graph import load
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.budget.advice import steps
from deadweight.pipeline.budget.grids import Network
from deadweight.pipeline.budget.latency import of_table
from deadweight.pipeline.budget.measured import table_of
from deadweight.pipeline.budget.resized import of_file
from deadweight.pipeline.budget.solve import Levels, OutOfReachError, Sum, Term, solve
from deadweight.targets.target import load_target
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.measurement import Measurement, Protocol

TABLES, CLOCKS, SHARES = 1000, 10, (0.35, 0.5, 0.65, 0.8)
EVERY = {8: 4, 16: 8, 32: 8, 64: 16}
"""By the step of the clock, that of the 16 widths of a group: a step that all of them keep cannot be seen."""


class Residual(nn.Module):
    """Two residual blocks on images of 16 x 16."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, width, 3, padding=1), nn.Linear(width, 10)
        conv = [nn.Conv2d(width, width, 3, padding=1) for _ in range(4)]
        self.one, self.two = (
            nn.Sequential(conv[0], nn.ReLU(), conv[1]),
            nn.Sequential(conv[2], nn.ReLU(), conv[3]),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(image))
        x = torch.relu(x + self.one(x))
        scores: torch.Tensor = self.head(torch.relu(x + self.two(x)).mean((2, 3)))
        return scores


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 10)
        ),
        (1, 28, 28),
    ),
    "residual": (Residual, (3, 16, 16)),
    "depthwise": (lambda: Depthwise((16, 32, 48, 64)), (3, 32, 32)),
}


def damage_of(levels: Levels, rng: random.Random) -> Sum:
    """Random damage by group, never less for a smaller width."""
    terms = []
    for name, own in levels.items():
        values = sorted((rng.random() ** 3 * rng.uniform(0.2, 3) for _ in own[:-1]), reverse=True)
        terms.append(
            Term((name,), {(width,): value for width, value in zip(own, [*values, 0.0], strict=True)})
        )
    return Sum("damage", terms)


def every(levels: Levels) -> list[dict[str, int]]:
    return [dict(zip(levels, at, strict=True)) for at in itertools.product(*levels.values())]


def compared(levels: Levels, damage: Sum, seconds: Sum, share: float) -> dict[str, float] | None:
    """The solver's objective over the best of all plans, less 1; and by how much the limit is broken."""
    some = every(levels)
    times = np.array([seconds.at(one) for one in some])
    limit = times.min() + share * (times.max() - times.min())
    losses = np.array([damage.at(one) for one in some])
    best = losses[times <= limit].min()
    try:
        found = solve(levels, damage, [(seconds, limit)])
    except OutOfReachError:
        return None
    over = seconds.at(found.widths) / limit - 1
    return {"above": (found.value - best) / best if best else found.value, "over": over}


def networks(name: str) -> Row:
    build, sample = NETWORKS[name]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        to_onnx(build().eval(), {"image": torch.randn(2, *sample)}, path)
        network = of_file(load(path), load_target("x86-cpu"))
        levels = {group: own[-5:] for group, own in network.levels.items()}
        thin = Network(network.file_at, levels, network.dense)

        def together(files: Mapping[str, Path], protocol: Protocol) -> Mapping[str, Measurement]:
            return time_together(files, protocol=protocol)

        table = table_of(thin, together, Path(folder) / "t.json", runtime="onnxruntime", networks=24)
        seconds = of_table(table).sum()
    rng = random.Random(0)
    found = [compared(levels, damage_of(levels, rng), seconds, share) for share in SHARES for _ in range(5)]
    return {"plans": len(every(levels)), **summary(found)}


def tables() -> Row:
    found = []
    for seed in range(TABLES):
        rng = random.Random(seed)
        names = [f"g{place}" for place in range(rng.randint(2, 5))]
        levels = {name: tuple(sorted(rng.sample(range(1, 65), rng.randint(2, 6)))) for name in names}
        terms = []
        for pair in itertools.pairwise(names):
            combined = itertools.product(*(levels[name] for name in pair))
            terms.append(
                Term(pair, {at: 1e-6 * (-(-at[1] // 8) * at[0] + 50 * rng.random()) for at in combined})
            )
        seconds = Sum("seconds", [*terms, Term((), {(): 2e-6})], 1e-6)
        found.append(compared(levels, damage_of(levels, rng), seconds, rng.uniform(0.05, 0.9)))
    return summary(found)


def summary(found: Sequence[dict[str, float] | None]) -> Row:
    known = [one for one in found if one is not None]
    above, over = (np.array([one[key] for one in known]) for key in ("above", "over"))
    return {
        "solved": len(known),
        "refused": len(found) - len(known),
        "largest above the best": float(above.max()),
        "limits broken": int((over > 1e-6).sum()),
    }


def clocks(step: int) -> Row:
    above, right, asked = [], 0, 0
    for seed in range(CLOCKS):
        rng, clock = random.Random(seed), Clock(step, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            finest = EVERY[step]
            model = load(chain(Path(folder) / "m.onnx", [16 * finest] * 3, seed=seed))
            network = of_file(model, load_target("x86-cpu"))
            own = tuple(finest * at for at in range(1, 17))
            levels = dict.fromkeys(network.levels, own)
            table = table_of(
                Network(network.file_at, levels, network.dense),
                clock.together,
                Path(folder) / "t.json",
                runtime="onnxruntime",
            )
            found = steps(table)
            right, asked = right + sum(one == step for one in found.values()), asked + len(found)
        some = every(levels)
        true = clock.chain_s(np.array([[*one.values()] for one in some]))
        latency = of_table(table)
        seconds = latency.sum()
        damage = damage_of(levels, rng)
        losses = np.array([damage.at(one) for one in some])
        for share in SHARES:
            plan = solve(levels, damage, [(seconds, share * latency.dense_s)])
            at = some.index(dict(plan.widths))
            above.append(float(true[at] / true[losses <= losses[at] + 1e-12].min() - 1))
    return {
        "clocks": CLOCKS,
        "plans": len(above),
        "above the least time, median / 98 % / largest": [
            float(q) for q in np.quantile(above, (0.5, 0.98, 1))
        ],
        "within 2 %": float(np.mean(np.array(above) <= 0.02)),
        "steps found": right / asked,
    }


CASES: dict[str, Callable[[], Row]] = {
    **{f"network {name}": partial(networks, name) for name in NETWORKS},
    "planted tables": tables,
    **{f"clock of steps of {step}": partial(clocks, step) for step in EVERY},
}


def measured(case: str, events: int) -> list[Row]:
    return [{"case": case, **CASES[case]()}]


def table_text(rows: Sequence[Row]) -> str:
    """One line a case, in Markdown."""
    lines = ["| case | what was found |", "| --- | --- |"]
    for row in rows:
        facts = [f"{key} {_text(value)}" for key, value in row.items() if key != "case"]
        lines.append(f"| {row['case']} | {'; '.join(facts)} |")
    return "\n".join(lines)


def _text(value: object) -> str:
    if isinstance(value, list):
        return " / ".join(map(_text, value))
    return f"{100 * value:.2f} %" if isinstance(value, float) else f"{value}"


if __name__ == "__main__":
    measure_missing(__doc__, Path("runs/budget_exactness.jsonl"), CASES, "case", measured, table_text)
