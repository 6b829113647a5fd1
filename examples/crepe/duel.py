"""CREPE's `full`, cut to the time of its authors' own small network `tiny`, against `tiny` tuned for as long.

    python examples/crepe/duel.py --quick     one seed, few steps
    python examples/crepe/duel.py             three seeds
    python examples/crepe/duel.py --table     prints what was measured so far; --plot FILE.svg draws it

`full` is cut three times, and tuned after each cut for as many steps: to four times `tiny`'s measured
latency and to twice, at widths that the stage `budget` finds, and to `tiny`'s own widths, the narrowest
that it tries. Controls: `tiny` tuned for as many steps in all; random channels, cut to the same widths and
tuned as often; these widths from scratch, for as many steps in all. All learn by the same frames and
targets: the pitch of few instruments, and of more what `full` says. The test's instruments and noises are
in no other split.

Rows are in runs/crepe/duel.jsonl, networks beside it; a row that is there is not measured again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from crepe import FULL, TINY, Crepe, Pitch, shipped

from benchmarks.common.grid import Cell, found, in_turn, machine, markdown, missing_words
from benchmarks.common.plot import write_svg
from benchmarks.common.record import Row, recorded
from deadweight.pipeline.importance import criteria
from deadweight.pipeline.pruning.groups import choose
from deadweight.pipeline.pruning.plan import plan_of
from deadweight.pipeline.runs.seeds import paired
from deadweight.pipeline.stages.budget import Budget
from deadweight.pipeline.stages.export import Export
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.quantize import Quantize
from deadweight.pipeline.training.checkpoint import write_tensors
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.training.predict import score_of, session_predict, torch_predict
from deadweight.pipeline.work import Work
from deadweight.targets.runtimes.open import open_session
from deadweight.targets.target import load_target
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Protocol

LEVELS = (4, 2, 1)
"""Times `tiny`'s latency, each cut from the one before."""
SHIPPED = ("full", "tiny")


@dataclass(frozen=True)
class Setting:
    """How much is measured, and where it is kept.

    Attributes:
        counts: frames of the splits; the steps follow from them, 64 frames each.
        epochs: after each cut.
    """

    folder: Path
    counts: Mapping[str, int]
    seeds: Sequence[int]
    epochs: int
    budget: Budget

    @property
    def record(self) -> Path:
        return self.folder / "duel.jsonl"

    @property
    def steps(self) -> int:
        """Of the tuning after one cut."""
        return self.epochs * -(-(self.counts["train"] + self.counts["unlabelled"]) // 64)


RUNS = Path("runs")
STAGE = Budget(speedup=2.0, criterion="weight_l2", networks=16, finalists=2, events=12, norms=1)
"""Its speed-up is replaced."""
WHOLE = Setting(RUNS / "crepe", Pitch.counts, (0, 1, 2), 1, STAGE)
QUICK_COUNTS = {**Pitch.counts, "train": 1500, "unlabelled": 500}
QUICK = Setting(
    RUNS / "crepe-quick", QUICK_COUNTS, (0,), 1, replace(STAGE, networks=16, finalists=2, norms=1)
)


def cells(setting: Setting) -> Iterator[Cell]:
    """What is to be measured, in an order in which each finds what it starts from."""
    first = setting.seeds[0]
    yield from ({"arm": name, "seed": first} for name in SHIPPED)
    for seed in setting.seeds:
        for times in LEVELS:
            if seed == first:
                yield {"arm": "widths", "times": times, "seed": first}
            yield {"arm": "pruned", "times": times, "seed": seed}
        yield from ({"arm": "tiny tuned", "times": times, "seed": seed} for times in LEVELS)
        if seed == first:
            yield {"arm": "time", "seed": first}
    for seed in setting.seeds:
        yield from ({"arm": arm, "times": t, "seed": seed} for arm in ("random", "scratch") for t in LEVELS)


def measure(setting: Setting, cell: Cell) -> Row:
    """The figures of a cell."""
    match cell["arm"]:
        case "widths":
            return _widths(setting, cell)
        case "time":
            return _times(setting)
        case _:
            return _scores(setting, cell)


def _place(setting: Setting, cell: Cell) -> Path:
    return setting.folder / "-".join(str(value).replace(" ", "-") for value in cell.values())


def _work(setting: Setting, cell: Cell, model: Crepe, widths: Sequence[int]) -> Work:
    """A network as the original of a run of its own."""
    workload = Pitch()
    workload.counts, workload.widths = setting.counts, widths
    place, seed = _place(setting, cell), cell.get("seed", 0)
    work = Work(workload, load_target("x86-cpu"), place, seed, networks=NetworkFiles())
    return work.with_model("original", model)


def _before(setting: Setting, cell: Cell) -> tuple[Crepe, Sequence[int]]:
    """The network that a cut starts from: `full`, or the one cut and tuned before."""
    if cell["times"] == LEVELS[0]:
        return shipped("full"), FULL
    earlier = {**cell, "times": 2 * cell["times"]}
    widths = _known(setting, {"arm": "widths", "times": earlier["times"]})["widths"]
    model = Crepe(widths)
    model.load_state_dict(load_file(_place(setting, earlier) / "final.safetensors"))
    return model.eval(), widths


def _known(setting: Setting, cell: Cell) -> Row:
    return found(recorded(setting.record), cell)[0]


def _widths(setting: Setting, cell: Cell) -> Row:
    """The channels of the convolutions; both budgets share the table, which is kept in one folder."""
    if cell["times"] == 1:
        return {"widths": list(TINY)}
    work = _work(setting, {"folder": "budget"}, shipped("full"), FULL)
    files = {name: _place(setting, {"arm": name, "seed": cell["seed"]}) / "FP32.onnx" for name in SHIPPED}
    measured = time_together(files, protocol=Protocol(events=setting.budget.events))
    speedup = judge(measured["full"], measured["tiny"]).ratio / cell["times"]
    made = replace(setting.budget, speedup=speedup)(work).model()
    before = FULL if cell["times"] == LEVELS[0] else _known(setting, {**cell, "times": LEVELS[0]})["widths"]
    found_widths = [getattr(made, f"conv{at}").weight.shape[0] for at in range(1, 7)]
    return {
        "speedup": round(speedup, 3),
        "widths": [min(pair) for pair in zip(before, found_widths, strict=True)],
    }


def _scores(setting: Setting, cell: Cell) -> Row:
    """One network: cut where that is asked for, tuned, in FP32 and INT8."""
    arm, started, epochs = cell["arm"], time.monotonic(), setting.epochs
    if arm in SHIPPED:
        work = _work(setting, cell, shipped(arm), FULL if arm == "full" else TINY)
        epochs = 0
    elif arm == "tiny tuned":
        work = _work(setting, cell, shipped("tiny"), TINY)
        epochs *= 1 + LEVELS.index(cell["times"])
    else:
        widths = _known(setting, {"arm": "widths", "times": cell["times"]})["widths"]
        if arm == "scratch":
            torch.manual_seed(cell["seed"])
            work = _work(setting, cell, Crepe(widths), widths)
            epochs *= 1 + LEVELS.index(cell["times"])
        else:
            work = _cut(
                _work(setting, cell, *_before(setting, cell)), widths, setting, by_chance=arm == "random"
            )
    raw = _accuracy(work)
    tuned = Finetune(epochs=epochs)(work) if epochs else work
    write_tensors(work.directory / "final.safetensors", tuned.model().state_dict())
    trained = round(time.monotonic() - started, 1)
    name = tuned.latest().name
    lean = replace(tuned, variants=(tuned.variant(name),))
    made = Quantize()(Export()(lean))
    paths = {"FP32": made.variant(name).path("onnx"), "INT8": made.variant("int8").path("onnx")}
    for kind, path in paths.items():
        path.replace(work.directory / f"{kind}.onnx")
    int8 = open_session(work.directory / "INT8.onnx")
    return {
        "raw": raw,
        "FP32": _accuracy(tuned) if epochs else raw,
        "INT8": 100 * score_of(work.workload, session_predict(int8), "test"),
        "bytes": {kind: (work.directory / f"{kind}.onnx").stat().st_size for kind in paths},
        "steps": epochs * setting.steps // setting.epochs,
        "trained_s": trained,
    }


def _cut(work: Work, widths: Sequence[int], setting: Setting, *, by_chance: bool) -> Work:
    """The work's network at these widths; the largest channels stay, or random ones."""
    model = work.model()
    groups = work.networks.groups(model, work.workload)
    generator = torch.Generator().manual_seed(work.seed)
    context = criteria.Context(model)
    scores = {
        one.name: torch.rand(one.size, generator=generator) if by_chance else criteria.weight_l2(one, context)
        for one in groups
    }
    wanted = {f"conv{at}": width for at, width in enumerate(widths, start=1)}
    small, _ = setting.budget.cut(model, choose(groups, scores, keep=wanted), groups, work)
    return work.with_model("pruned", small, plan=plan_of(small))


def _accuracy(work: Work) -> float:
    """On the test split, in per cent."""
    predict = torch_predict(work.model(), work.workload.example_inputs())
    return 100 * score_of(work.workload, predict, "test")


def _times(setting: Setting) -> Row:
    """How many times as fast as `full`, and how many times `tiny`'s latency; all timed together."""
    first = setting.seeds[0]
    arms: dict[str, Cell] = {name: {"arm": name, "seed": first} for name in SHIPPED}
    arms |= {f"pruned {times}": {"arm": "pruned", "times": times, "seed": first} for times in LEVELS}
    files = {
        f"{name} {kind}": _place(setting, cell) / f"{kind}.onnx"
        for name, cell in arms.items()
        for kind in ("FP32", "INT8")
    }
    measured = time_together(files, protocol=Protocol(events=setting.budget.events))

    def ratios(one: str, other: str) -> list[float]:
        judged = judge(measured[one], measured[other])
        return [judged.ratio, judged.low, judged.high]

    return {
        "seconds": {name: one.latency_s(50).value for name, one in measured.items()},
        "speedup": {name: ratios("full FP32", name) for name in files},
        "of_tiny": {name: ratios(name, "tiny FP32") for name in files},
    }


def table(setting: Setting) -> str:
    """One line a network; intervals of accuracy are over the seeds, those of times over the events."""
    rows = recorded(setting.record)
    times: Row = next(iter(found(rows, {"arm": "time"})), {})
    arms: list[Cell] = [{"arm": "full"}, {"arm": "tiny"}]
    arms += [
        {"arm": arm, "times": at} for arm in ("tiny tuned", "pruned", "random", "scratch") for at in LEVELS
    ]
    rivals = {
        (row["cell"]["times"], row["cell"]["seed"]): row["FP32"] for row in found(rows, {"arm": "tiny tuned"})
    }
    lines = []
    for cell in arms:
        own = found(rows, cell)
        if not own:
            continue
        timed = cell["arm"] if cell["arm"] in SHIPPED else f"pruned {cell['times']}"
        timed = "tiny" if cell["arm"] == "tiny tuned" else timed
        key = [(row["cell"].get("times", LEVELS[-1]), row["cell"]["seed"]) for row in own]
        apart = [row["FP32"] - rivals[at] for row, at in zip(own, key, strict=True) if at in rivals]
        name = f"{cell['arm']}, {cell['times']} x" if "times" in cell else cell["arm"]
        lines.append(
            [
                f"tiny tuned, as long as {cell['times']} x" if cell["arm"] == "tiny tuned" else name,
                *(_ratio(times, "of_tiny", timed, kind) for kind in ("FP32", "INT8")),
                *(_ratio(times, "speedup", timed, kind) for kind in ("FP32", "INT8")),
                *(_mean([row[kind] for row in own]) for kind in ("raw", "FP32", "INT8")),
                "" if cell["arm"] == "tiny tuned" else _mean(apart, sign=True),
                " / ".join(f"{own[0]['bytes'][kind] / 1e6:.2f}" for kind in ("FP32", "INT8")),
                str(own[0]["steps"]),
            ]
        )
    head = ["network", "time / tiny", "INT8", "times as fast as full", "INT8", "untuned", "FP32", "INT8"]
    head += ["FP32, less tiny tuned", "MB, FP32 / INT8", "steps after the last cut"]
    chosen = "; ".join(
        f"{row['cell']['times']} x {'-'.join(map(str, row['widths']))}"
        for row in found(rows, {"arm": "widths"})
    )
    about = f"Per cent within 50 cents on {setting.counts['test']} frames of unseen instruments; {chosen}."
    return f"{about}\n\n{markdown(head, lines)}\n\n{missing_words(rows, list(cells(setting)))}\n{machine()}"


def _mean(values: Sequence[float], *, sign: bool = False) -> str:
    """The mean with Student's 95 % interval over the seeds."""
    if not values:
        return ""
    plus = "+" if sign else ""
    if len(values) == 1:
        return f"{values[0]:{plus}.1f}"
    one = paired(values)
    return f"{one.mean:{plus}.1f} ({one.low:{plus}.1f} to {one.high:{plus}.1f})"


def _ratio(times: Row, kind: str, name: str, precision: str) -> str:
    found_at = times.get(kind, {}).get(f"{name} {precision}")
    return "{:.2f} ({:.2f} to {:.2f})".format(*found_at) if found_at else ""


def plot(setting: Setting, path: Path) -> None:
    """Accuracy against time, FP32 and INT8; the means of the seeds."""
    rows = recorded(setting.record)
    of_tiny = found(rows, {"arm": "time"})[0]["of_tiny"]
    series: dict[str, list[tuple[float, float]]] = {}
    for arm in ("full", "tiny", "tiny tuned", "pruned", "random", "scratch"):
        for kind in ("FP32", "INT8") if arm in ("tiny tuned", "pruned") else ("FP32",):
            for times in LEVELS if arm in ("pruned", "random", "scratch") else ("",):
                own = found(rows, {"arm": arm} | ({"times": times} if times else {}))
                timed = f"pruned {times}" if times else arm.split()[0]
                point = of_tiny[f"{timed} {kind}"][0], sum(row[kind] for row in own) / max(len(own), 1)
                series.setdefault(f"{arm}, {kind}", []).extend([point] if own else [])
    high = 1.2 * max(across for points in series.values() for across, _ in points)
    shown = {name: points for name, points in series.items() if points}
    write_svg(
        path,
        shown,
        x="time / time of tiny in FP32",
        y="within 50 cents, %",
        x_range=(0.5, high),
        y_range=(0, 100),
        log=True,
    )


def main() -> None:
    """Measures what is missing, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    setting = QUICK if given.quick else WHOLE
    if not given.table and not given.plot:
        in_turn(list(cells(setting)), partial(measure, setting), setting.record)
    if given.plot:
        plot(setting, given.plot)
    print(table(setting))


if __name__ == "__main__":
    main()
