"""The stage budget against other ways to the same measured time, with the same cut, tuning and clock.

    python benchmarks/budget/rivals.py widths     finds the widths: minutes a cell, on one quiet core
    python benchmarks/budget/rivals.py scores     cuts, tunes and scores them: minutes a cell, on any core
    python benchmarks/budget/rivals.py table      what was measured so far, in Markdown

Written down before the first run:

For each network, budget (a share of the original's time) and seed (of its original), the stage budget
finds a network. Every rival has one knob, how much it removes; it is set so that the rival's network
takes the same *measured* time. In every row the units of a group go by `weight_l2`, so that only the
widths differ; the cut, batch norms estimated anew, the tuning and the test split are the same. A rival
whose closest network is off by more than 2 % is printed with its time and is in no test.

The test: differences of test accuracy, budget less rival, paired over the seeds; the mean with Student's
95 % interval. Ahead: the interval is above 0. Behind: it is below 0. Else they cannot be distinguished.
Aimed at: ahead of every rival untuned; behind none tuned; tuned on signs, ahead in half of the cells.
`random widths` is the control: where the budget is not ahead of it, allocation does not matter there.
`scratch` has the budget's widths and new weights, trained for as long as the original and the tuning
together.

Ablations, in the same table: `raw table` is the budget without calibration (isolated segments, summed),
`HALP, calibrated` is the budget without damage curves (importance instead), and `one plan` is the budget
without the closed loop (the solver's first plan, at the same time). The column "believed" says of those
with a model of time what share of the budget their network takes when their own model is trusted instead
of the clock: below 1 the budget is not used, above 1 it is broken.

Resumable: rows in runs/budget_rivals_widths.jsonl and runs/budget_rivals.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.budget.kept import STAGE, work_of
from benchmarks.common.grid import (
    EPOCHS,
    TUNING,
    Cell,
    found,
    in_turn,
    machine,
    markdown,
    original,
    scores,
    spread,
)
from benchmarks.common.record import Row, recorded
from deadweight.export.onnx_graph.graph import save
from deadweight.pipeline.budget.grids import Network
from deadweight.pipeline.budget.latency import Latency, of_table
from deadweight.pipeline.budget.measured import seconds_in_chunks
from deadweight.pipeline.budget.resized import of_module
from deadweight.pipeline.budget.solve import OutOfReachError, Sum, Term, solve
from deadweight.pipeline.budget.table import EMPTY, SegmentTable, load_table
from deadweight.pipeline.budget.timer import QUICK
from deadweight.pipeline.importance import criteria
from deadweight.pipeline.importance.allocation import kept, ranking
from deadweight.pipeline.importance.gradients import Gradients
from deadweight.pipeline.pruning.groups import Groups, choose
from deadweight.pipeline.pruning.plan import plan_of
from deadweight.pipeline.runs.seeds import paired
from deadweight.pipeline.stages.controls import Controls
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import alignment
from deadweight.pipeline.work import Work
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Measurement, Protocol

WIDTHS = Path("runs") / "budget_rivals_widths.jsonl"
SCORES = Path("runs") / "budget_rivals.jsonl"
NETWORKS = {"signs": "residual network, signs", "cnn": "residual CNN, Fashion-MNIST"}
SHARES = (0.5, 0.3)
SEEDS = (0, 1, 2, 3, 4)
EQUAL = 0.02
"""How far a rival's measured time may be from the budget's."""
OURS = "budget"

Widths = Mapping[str, int]
Knob = Callable[[float], Widths]
"""From a knob between 0 and 1, where more is slower, to widths."""


@dataclass(frozen=True, eq=False)
class Start:
    """A trained network with what the stage budget measured of it."""

    work: Work
    groups: Groups
    scores: Mapping[str, Tensor]
    network: Network
    latency: Latency
    importance: Sum
    lamp: Mapping[str, Tensor]


def started(work: Work) -> Start:
    """Reads what the stage, which ran in the work's folder, measured there."""
    model = work.model()
    groups = work.networks.groups(model, work.workload)
    context = criteria.Context(model, None, work.seed, Gradients(model, groups, work.workload))
    by_norm = {group.name: criteria.weight_l2(group, context) for group in groups}
    table = load_table(work.directory / "table.json")
    gone = []
    for group in groups:  # the importance of the units that go, in the order in which they go
        lost = criteria.taylor(group, context)[by_norm[group.name].argsort()].cumsum(0).tolist()
        values: dict[tuple[int, ...], float] = {
            (width,): [0.0, *lost][group.size - width] for width in table.levels[group.name]
        }
        gone.append(Term((group.name,), values))
    return Start(
        work,
        groups,
        by_norm,
        of_module(model, groups, table.levels, work.workload.example_inputs(), seed=work.seed),
        of_table(table),
        Sum("importance", gone),
        {group.name: criteria.lamp(group, context) for group in groups},
    )


def rivals(start: Start) -> dict[str, Knob]:
    """Every rival by name."""
    groups, by_norm, levels, sizes = start.groups, start.scores, start.network.levels, start.network.dense
    aligned = alignment(start.work.target)
    drawn = {name: random.Random(f"{start.work.seed}/{name}").uniform(0.1, 1.0) for name in sizes}
    calibrated, raw, damage = start.latency.sum(), _raw(start.latency.table), start.latency.table.damages()

    def uniform(knob: float) -> Widths:
        return {name: max(1, round(knob * size)) for name, size in sizes.items()}

    def on_steps(knob: float) -> Widths:
        plan = choose(groups, by_norm, keep=uniform(knob), align=aligned)
        return {name: width.after for name, width in plan.widths.items()}

    def grown(knob: float) -> Widths:
        scale = knob / max(1 - knob, 1e-9)
        return {name: max(1, min(size, round(scale * drawn[name] * size))) for name, size in sizes.items()}

    def global_order(values: Mapping[str, Tensor], normalise: Any) -> Knob:
        order = ranking(values, scope="global", normalise=normalise, most=STAGE.most)
        return lambda knob: kept(groups, values, order, round((1 - knob) * len(order)))

    def solved(objective: Sum, seconds: Sum) -> Knob:
        return lambda knob: solve(levels, objective, [(seconds, knob * seconds.at(sizes))]).widths

    made: dict[str, Knob] = {
        "uniform": uniform,
        "uniform, aligned": on_steps,
        "global L2": global_order(by_norm, "mean"),
        "LAMP": global_order(start.lamp, "none"),
        "HALP, raw table": solved(start.importance, raw),
        "HALP, calibrated": solved(start.importance, calibrated),
        "raw table": solved(damage, raw),
        "one plan": solved(damage, calibrated),
        "random widths": grown,
    }
    if importlib.util.find_spec("torch_pruning"):
        made["Torch-Pruning, global L2"] = lambda knob: _torch_pruning(start, 1 - knob)
    return made


BELIEVED = ("HALP, raw table", "HALP, calibrated", "raw table", "one plan")


def _raw(table: SegmentTable) -> Sum:
    """The sum of segments timed alone, as the literature sums them."""
    call_s = table.seconds[EMPTY]
    terms = [
        Term(one.groups, {widths: table.part(at, widths) + call_s for widths in table.combinations(at)})
        for at, one in enumerate(table.segments)
    ]
    return Sum("seconds", terms)


def _torch_pruning(start: Start, ratio: float) -> Widths:
    """The widths that Torch-Pruning's global ranking by group L2 gives."""
    import torch_pruning as tp  # pyright: ignore[reportMissingImports]

    model = start.work.model()
    inputs = tuple(start.work.workload.example_inputs().values())
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=ratio,
        max_pruning_ratio=STAGE.most,
        ignored_layers=linear[-1:],
    ).step()
    modules = dict(model.named_modules())
    weights = {group.name: torch.as_tensor(modules[group.name].weight) for group in start.groups}
    return {name: len(weight) for name, weight in weights.items()}


def find_widths(cell: Cell) -> Row:
    """The budget's network, and every rival's that takes the same measured time."""
    work = work_of(cell["network"], cell["seed"])
    made = replace(STAGE, speedup=1 / cell["share"])(work)
    plan = made.plan(made.latest())
    assert plan is not None
    ours = {name: width.after for name, width in plan.widths.items()}
    start = started(work)
    knobs = rivals(start)
    believed = {name: widths for name in BELIEVED if (widths := _at(knobs[name], cell["share"]))}
    candidates = _near(start, ours, knobs)
    files: dict[str, Widths] = {"dense": start.network.dense, OURS: ours}
    files |= {f"{name}/{at}": one for name, own in candidates.items() for at, one in enumerate(own)}
    files |= {f"believed/{name}": widths for name, widths in believed.items()}
    ratios = _timed(start, files)
    rows: dict[str, Row] = {OURS: {"widths": ours, "time": (1.0, 1.0, 1.0)}}
    for name, own in candidates.items():
        at = min(range(len(own)), key=lambda at: abs(ratios[f"{name}/{at}"][0] - 1))
        rows[name] = {"widths": dict(own[at]), "time": ratios[f"{name}/{at}"]}
    budget = ratios["dense"][0] * cell["share"]
    return {
        "used": 1 / budget,
        "believed": {name: ratios[f"believed/{name}"][0] / budget for name in believed},
        "rows": rows,
    }


def _at(knob: Knob, value: float) -> Widths | None:
    with contextlib.suppress(OutOfReachError):
        return knob(value)
    return None


def _near(start: Start, ours: Widths, knobs: Mapping[str, Knob]) -> dict[str, list[Widths]]:
    """Of each rival, widths that take 0.92 to 1.08 times as long as ours, from a grid made finer twice.

    These times are short: which of the widths is nearest is measured again.
    """
    aims = np.linspace(0.92, 1.08, 9).tolist()
    bounds = dict.fromkeys(knobs, (0.02, 1.0))
    seconds: dict[str, float] = {}
    seen: dict[str, dict[float, Widths]] = {name: {} for name in knobs}
    key_of, dense = start.latency.table.network_key, start.network.file_at(start.network.dense)
    for _ in range(3):
        for name, (low, high) in bounds.items():
            for value in np.linspace(low, high, 6).tolist():
                if (widths := _at(knobs[name], value)) is not None:
                    seen[name][value] = widths
        asked = {key_of(widths): widths for own in seen.values() for widths in own.values()}
        wanted = {key: widths for key, widths in asked.items() if key not in seconds} | {OURS: ours}
        files = {key: partial(start.network.file_at, widths) for key, widths in wanted.items()}
        new: dict[str, float] = {}
        for _, chunk in seconds_in_chunks(files, dense, {"": _together}, QUICK):
            new |= chunk
        seconds |= {key: value / new[OURS] for key, value in new.items() if key in asked}
        for name, own in seen.items():
            slower = [value for value, widths in own.items() if seconds[key_of(widths)] >= 1]
            faster = [value for value, widths in own.items() if seconds[key_of(widths)] < 1]
            bounds[name] = (max(faster, default=bounds[name][0]), min(slower, default=bounds[name][1]))
    chosen = {}
    for name, own in seen.items():
        different = {key_of(widths): widths for widths in own.values()}
        best = [min((abs(seconds[key] - aim), key) for key in different)[1] for aim in aims]
        chosen[name] = [different[key] for key in dict.fromkeys(best)]
    return chosen


def _together(files: Mapping[str, Path], protocol: Protocol) -> Mapping[str, Measurement]:
    return time_together(files, protocol=protocol)


def _timed(start: Start, files: Mapping[str, Widths]) -> dict[str, tuple[float, float, float]]:
    """The time of each over that of ours, with a 95 % interval; all timed together."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{at}.onnx" for at, name in enumerate(files)}
        for name, widths in files.items():
            save(start.network.file_at(widths), paths[name])
        measured = time_together(paths, protocol=Protocol(events=12, event_s=0.03, block_s=0.003))
    found = {name: judge(one, measured[OURS]) for name, one in measured.items()}
    return {name: (one.ratio, one.low, one.high) for name, one in found.items()}


def score(cell: Cell) -> Row:
    """One network of the widths that were found: cut, tuned and scored; or its widths from scratch."""
    wanted = {key: cell[key] for key in ("network", "share", "seed")}
    scratch = cell["method"] == "scratch"
    row = found(recorded(WIDTHS), wanted)[0]["rows"][OURS if scratch else cell["method"]]
    with tempfile.TemporaryDirectory() as folder:
        work = replace(original(cell["network"], cell["seed"]), directory=Path(folder))
        model = work.model()
        groups = work.networks.groups(model, work.workload)
        context = criteria.Context(model)
        by_norm = {group.name: criteria.weight_l2(group, context) for group in groups}
        small, _ = STAGE.cut(model, choose(groups, by_norm, keep=row["widths"]), groups, work)
        pruned = work.with_model("pruned", small, plan=plan_of(small)).logged("budget", STAGE)
        whole = scores(pruned, "original")
        if scratch:
            epochs = EPOCHS[cell["network"]] + TUNING[cell["network"]]
            return {"whole": whole, "tuned": scores(Controls(random=False, epochs=epochs)(pruned), "scratch")}
        tuned = Finetune(epochs=TUNING[cell["network"]])(replace(pruned, directory=work.directory / "tuned"))
        return {"whole": whole, "raw": scores(pruned, "pruned"), "tuned": scores(tuned, "tuned")}


def score_cells(widths: Iterable[Row]) -> list[Cell]:
    """What is to be scored: the rows of all widths that were found, the training from scratch last."""
    cells = [{**row["cell"], "method": name} for row in widths for name in row["rows"]]
    return cells + [{**row["cell"], "method": "scratch"} for row in widths if row["cell"]["seed"] < 3]


def table(network: str, share: float, found_widths: Sequence[Row], scored: Sequence[Row]) -> str:
    """One line a method: its time, its accuracy, and the budget's lead, paired over the seeds."""
    where = {"network": network, "share": share}
    widths = {row["cell"]["seed"]: row for row in found(found_widths, where)}
    rows = {(row["cell"]["method"], row["cell"]["seed"]): row for row in found(scored, where)}
    if not widths:
        return f"{NETWORKS[network]}, {share:.0%} of its time: nothing was measured."
    names = dict.fromkeys(name for row in widths.values() for name in row["rows"])
    lines = []
    for name in (*names, "scratch"):
        own = {seed: row["rows"].get(OURS if name == "scratch" else name) for seed, row in widths.items()}
        equal = [seed for seed, row in own.items() if row and abs(row["time"][0] - 1) <= EQUAL]
        trusted = [row["believed"][name] for row in widths.values() if name in row["believed"]]
        lines.append(
            [
                name,
                ", ".join(f"{row['time'][0]:.3f}" for row in own.values() if row),
                f"{min(trusted):.2f} to {max(trusted):.2f}" if trusted else "",
                *(_accuracy(rows, name, kind) for kind in ("raw", "tuned")),
                *(_lead(rows, name, equal, kind) for kind in ("raw", "tuned")),
            ]
        )
    used = ", ".join(f"{row['used']:.1%}" for row in widths.values())
    whole = sorted({row["whole"]["test"] for row in rows.values()})
    head = [
        "widths by",
        "time / ours",
        "believed",
        "untuned",
        "tuned",
        "untuned: ours ahead by",
        "tuned: ours ahead by",
    ]
    about = (
        f"{NETWORKS[network]}, {share:.0%} of its time (the budget uses {used}); original {spread(whole)} %, "
        f"tuned for {TUNING[network]} epochs, seeds {', '.join(map(str, widths))}. Test accuracy in per cent."
    )
    return f"{about}\n\n{markdown(head, lines)}"


def _accuracy(rows: Mapping[tuple[str, int], Row], name: str, kind: str) -> str:
    own = [row[kind]["test"] for (method, _), row in rows.items() if method == name and kind in row]
    return spread(own) if own else ""


def _lead(rows: Mapping[tuple[str, int], Row], name: str, seeds: Sequence[int], kind: str) -> str:
    """The paired difference, and what it says by the test in this file's first lines."""
    both = [seed for seed in seeds if (name, seed) in rows and (OURS, seed) in rows]
    pairs = [(rows[OURS, seed], rows[name, seed]) for seed in both if kind in rows[name, seed]]
    if name == OURS or not pairs:
        return ""
    apart = [ours[kind]["test"] - other[kind]["test"] for ours, other in pairs]
    if len(apart) == 1:
        return f"{apart[0]:+.2f} (n 1)"
    found = paired(apart)
    verdict = "cannot tell" if not found.apart else "ahead" if found.mean > 0 else "behind"
    return f"{found.words()}, n {found.n}: {verdict}"


def main() -> None:
    """Does one of the two parts, or prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["widths", "scores", "table"])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    given = parser.parse_args()
    wanted = [
        {"network": network, "share": share, "seed": seed}
        for seed in given.seeds
        for network in given.networks
        for share in given.shares
    ]
    if given.command == "widths":
        in_turn(wanted, find_widths, WIDTHS)
    if given.command == "scores":
        known = [row for row in recorded(WIDTHS) if row["cell"] in wanted]
        in_turn(score_cells(known), score, SCORES)
    rows = recorded(WIDTHS), recorded(SCORES)
    print("\n\n".join(table(network, share, *rows) for network in given.networks for share in given.shares))
    print(machine())


if __name__ == "__main__":
    main()
