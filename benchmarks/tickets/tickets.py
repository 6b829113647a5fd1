"""Lottery tickets on Fashion-MNIST: rewound, drawn anew, at random, or simply tuned on, at equal size.

    python benchmarks/tickets/tickets.py            measures what is missing, one training after the other
    python benchmarks/tickets/tickets.py --table    the tables of what was measured so far, in Markdown

LeNet-300-100 as Frankle and Carbin (2019) prune it: Glorot's normal initialisation, Adam at 0.0012 without
decay, 20 % of each layer's weights a round and 10 % of the output layer's, training from the rewound weights
after each round, the epoch of the best validation score kept. Seven rounds leave 21 % of the weights, nine
13 %. Unlike there: 4 epochs at batch 128 (1,564 steps) for each training, not 50,000 steps at batch 60.
Neurons go the same way, 20 % of each hidden layer a round. One control more has new weights and as many
epochs as the whole search: a ticket is found by training. Within a seed all begin with the same network and
see the samples in the same order, so differences are taken seed by seed.

The last table is one cut at a fixed threshold: 784-300-150-10, weights under 0.001 dropped (published for
it: 85.94 % -> 85.54 % at about half the parameters).
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import Cell, found, in_turn, markdown, missing_words, spread, workload_of
from benchmarks.common.record import Row, recorded
from deadweight.pipeline.compression.masks import kept_share
from deadweight.pipeline.runs.seeds import Paired, paired
from deadweight.pipeline.stages.lottery import Control, Lottery
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.training.predict import score_of, torch_predict
from deadweight.pipeline.work import Work
from deadweight.pipeline.workload import Workload
from deadweight.targets.target import load_target

RECORD = Path("runs") / "tickets.jsonl"
PLACE = Path("runs") / "tickets"
EPOCHS = 4
SEEDS = {"weights": (0, 1, 2, 3, 4), "neurons": (0, 1, 2)}
ROUNDS = (7, 9)
THRESHOLD = 0.001
CONTROLS: tuple[Control, ...] = get_args(Control)
STARTS = ("rewound", *CONTROLS)
LONG = "reinitialised, as long as the search"
"""The same cut from new weights, for as many epochs as all rounds together: what "rethinking" asks for."""
STAGES = {
    "weights": Lottery(unit="weights", rounds=max(ROUNDS), share=0.2, shares={"head": 0.1}),
    "neurons": Lottery(unit="neurons", rounds=max(ROUNDS), share=0.2),
    "threshold": Lottery(threshold=THRESHOLD),
}
DROPPED = Lottery(threshold=THRESHOLD, tune_on=True, epochs=0)  # dropped, and not trained again


class Glorot(nn.Module):
    """784-300-N-10 with ReLU; weights normal as Glorot and Bengio (2010) draw them, biases zero."""

    def __init__(self, second: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(784, 300), nn.Linear(300, second), nn.Linear(second, 10)
        for layer in (self.fc1, self.fc2, self.head):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.fc2(torch.relu(self.fc1(image.flatten(1)))))
        scores: torch.Tensor = self.head(hidden)
        return scores


def published(second: int) -> Workload:
    """The example's data with this network and the published optimizer."""
    workload = copy.copy(workload_of("mlp"))
    workload.build_model = lambda: Glorot(second)  # type: ignore[method-assign]
    workload.optimizer = lambda model: torch.optim.Adam(model.parameters())  # type: ignore[method-assign]
    return workload


def cells() -> list[Cell]:
    """What is tried, a seed at a time, so that pairs are whole as soon as may be."""
    made: list[Cell] = []
    for unit in ("weights", "neurons"):
        for seed in SEEDS[unit]:
            made += [_cell(unit, 0, "whole", seed)] if unit == "weights" else []
            made += [_cell(unit, rounds, start, seed) for rounds in ROUNDS for start in STARTS]
    threshold = [
        _cell("threshold", 1, start, seed) for seed in (0, 1, 2) for start in ("whole", "cut", "rewound")
    ]
    return made + threshold + [_cell("weights", min(ROUNDS), LONG, seed) for seed in SEEDS["weights"]]


def _cell(unit: str, rounds: int, start: str, seed: int) -> Cell:
    return {"unit": unit, "rounds": rounds, "start": start, "seed": seed}


def measure(cell: Cell) -> Row:
    """The figures of one cell; what other cells trained already is taken from disk."""
    unit, start, rounds = cell["unit"], cell["start"], cell["rounds"]
    workload = published(150 if unit == "threshold" else 100)
    place = PLACE / ("threshold" if unit == "threshold" else "lenet") / str(cell["seed"])
    work = Work(workload, load_target("x86-cpu"), place / "whole", cell["seed"], networks=NetworkFiles())
    work = Train(epochs=EPOCHS, learning_rate=1.2e-3, decay="none")(work)
    whole = work.model()
    if start == "whole":
        return {**scored(whole, workload), "left": 1.0}
    stage = DROPPED if start == "cut" else STAGES[unit]
    work = dataclasses.replace(work, directory=place / ("cut" if start == "cut" else unit))
    cut, fitted = next(itertools.islice(stage.found(work), rounds - 1, None))
    if start in CONTROLS:
        fitted = stage.trained(work, cut, start, work.directory / f"{start}-{rounds}")
    if start == LONG:
        stage = dataclasses.replace(stage, epochs=EPOCHS * (rounds + 1))
        fitted = stage.trained(work, cut, "reinitialised", work.directory / f"long-{rounds}")
    left = size(fitted.model) / size(whole) if cut.masks is None else kept_share(cut.masks)
    return {**scored(fitted.model, workload), "left": round(left, 5), "epochs": len(fitted.scores)}


def scored(model: nn.Module, workload: Workload) -> Row:
    """Accuracies in per cent."""
    predict = torch_predict(model, workload.example_inputs())
    return {split: round(100 * score_of(workload, predict, split), 4) for split in ("validation", "test")}


def size(model: nn.Module) -> int:
    """How many parameters there are."""
    return sum(parameter.numel() for parameter in model.parameters())


def side(ticket_less_reinitialised: Paired, *, margin: float = 0.5, unit: str = "points") -> str:
    """A sentence with the claim that the seeds support: from ticket minus re-initialised, seed by seed.

    Args:
        margin: a difference that does not matter. A 95 % interval within it on both sides is "as well"; one
            that excludes zero supports a claim; any other is undecided.
    """
    found = ticket_less_reinitialised
    change = f"{found.mean:+.2f} {unit} ({found.low:+.2f} to {found.high:+.2f}, {found.n} seeds)"
    if found.low > 0:
        return f"For tickets: its own initial values are better for the ticket than new ones, by {change}."
    if found.high < 0:
        return f"Against tickets: new initial values are better for the same cut; own minus new: {change}."
    if found.low >= -margin and found.high <= margin:
        as_well = f"new initial values did as well within {margin:g} {unit}"
        return f'For "rethinking": {as_well}; own minus new: {change}.'
    return f"Undecided: {found.n} seeds cannot separate own from new initial values; own minus new: {change}."


def table(rows: Sequence[Row]) -> str:
    """All tables, and which side of the argument the seeds took."""
    parts = [missing_words(rows, cells())]
    for unit in ("weights", "neurons"):
        lines, sides = [], []
        for rounds in ROUNDS:
            here = {start: _by_seed(rows, unit, rounds, start) for start in STARTS}
            left = [row["left"] for row in found(rows, {"unit": unit, "rounds": rounds, "start": "rewound"})]
            share = f"{100 * sum(left) / len(left):.1f} %" if left else "missing"
            lines += [
                [share, start, spread(list(here[start].values())), _less(here["rewound"], here[start])]
                for start in STARTS
            ]
            here[LONG] = _by_seed(rows, unit, rounds, LONG)
            if here[LONG]:
                lines.append(
                    [share, LONG, spread(list(here[LONG].values())), _less(here["rewound"], here[LONG])]
                )
            for start in ("reinitialised", LONG):
                apart = _differences(here["rewound"], here[start])
                if len(apart) > 1:
                    sides.append(f"At {share}, against {start}: {side(paired(apart))}")
            whole = _by_seed(rows, "weights", 0, "whole")
            seeds = {seed: whole[seed] for seed in here["rewound"] if seed in whole}
            lines.append(
                [share, "(whole network)", spread(list(seeds.values())), _less(here["rewound"], seeds)]
            )
        head = [f"{unit} left", "start", "test accuracy, %", "rewound less this, points (95 %)"]
        parts += [markdown(head, lines), *sides]
    lines = []
    for start in ("whole", "cut", "rewound"):
        cut = found(rows, {"unit": "threshold", "start": start})
        lines.append(
            [start, spread([100 * row["left"] for row in cut]), spread([row["test"] for row in cut])]
        )
    head = [f"784-300-150-10, under {THRESHOLD:g}", "weights left, %", "test accuracy, %"]
    return "\n\n".join([*parts, markdown(head, lines)])


def _by_seed(rows: Sequence[Row], unit: str, rounds: int, start: str) -> dict[int, float]:
    wanted = {"unit": unit, "rounds": rounds, "start": start}
    return {row["cell"]["seed"]: float(row["test"]) for row in found(rows, wanted)}


def _differences(one: Mapping[int, float], other: Mapping[int, float]) -> list[float]:
    return [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]


def _less(ticket: Mapping[int, float], other: Mapping[int, float]) -> str:
    if ticket is other:
        return ""
    apart = _differences(ticket, other)
    return paired(apart).words() if len(apart) > 1 else "missing"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true")
    given: Any = parser.parse_args()
    if not given.table:
        in_turn(cells(), measure, RECORD)
    print(table(recorded(RECORD)))


if __name__ == "__main__":
    main()
