"""Depth against width at equal measured latency: the residual CNN on Fashion-MNIST, three seeds.

    python benchmarks/depth/depth_width.py [--epochs 3] [--tuning 1]    measures what is missing, one process
    python benchmarks/depth/depth_width.py --table                      the table so far, in Markdown

Of each original, one or two of the three blocks are dropped, those that the validation split misses least.
Its rival is the same original, narrowed by its activations until it takes as long, and tuned alike. Time goes
in stairs here (a convolution of 20 channels takes as long as one of 24), so one ratio for all layers meets a
given time only by luck. Layers are narrowed one by one instead, the widest first: all of them to three
quarters, then to a half, and so on. Of these 30 networks, all timed by turns with the shallow one, and of the
neighbours of the nearest (an eighth of one layer more or less), the three nearest are pruned for real and
timed again, with 24 events, beside the shallow network and the original; the nearest of these is tuned. Times
are by the project's own clock and judge, batch 1, one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import (
    SEEDS,
    Cell,
    found,
    machine,
    markdown,
    missing_words,
    scores,
    spread,
    workload_of,
)
from benchmarks.common.record import Row, append, recorded
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.pruning.groups import Groups, choose
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.runs.seeds import paired
from deadweight.pipeline.stages.depth import Depth
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.stages.statistics import Statistics
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Variant, Work
from deadweight.targets.artifact import Artifact
from deadweight.targets.target import load_target
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import Judgement, judge
from deadweight.targets.timing.measurement import Protocol

Shares = dict[str, float]
"""By layer, the share of its units that goes."""

RECORD = Path("runs") / "depth_width.jsonl"
PLACE = Path("runs") / "depth_width"
BLOCKS = (1, 2)
LEVELS = (0.25, 0.5, 0.625, 0.75, 0.875)  # shares of a layer's units that go
STEP = 0.125
NEAREST = 3  # widths that are pruned for real
COARSE = Protocol(events=6, event_s=0.03)
FINE = Protocol(events=12, event_s=0.06)
FINAL = Protocol(events=24, event_s=0.1)


def cells(epochs: int, tuning: int) -> list[Cell]:
    """What is measured, with so many epochs of the originals and of tuning."""
    return [
        {"blocks": blocks, "way": way, "seed": seed, "epochs": epochs, "tuning": tuning}
        for blocks in BLOCKS
        for seed in SEEDS
        for way in ("depth", "width")
    ]


def original(seed: int, epochs: int) -> Work:
    """The trained original of a seed, with the statistics of its activations; made once, and resumed."""
    place = PLACE / f"original-{epochs}-{seed}"
    work = Work(workload_of("cnn"), load_target("x86-cpu"), place, seed, networks=NetworkFiles())
    if (place / "statistics.safetensors").exists():
        work = _with(work, "original")
        return work.with_artifact("statistics", place / "statistics.safetensors")
    return Statistics()(Train(epochs=epochs)(work))


def shallow(work: Work, blocks: int) -> Work:
    """The original without some blocks; made once."""
    place = work.directory / f"shallow-{blocks}"
    work = dataclasses.replace(work, directory=place)
    done = (place / "shallow" / "plan.json").exists()
    return _with(work, "shallow") if done else Depth(blocks=blocks)(work)


def measure(cell: Cell) -> Row:
    """The original without its blocks, or as fast and narrow; before and after tuning."""
    work = original(cell["seed"], cell["epochs"])
    place = work.directory / f"{cell['way']}-{cell['blocks']}-{cell['tuning']}"
    cut = shallow(work, cell["blocks"])
    plan = cut.plan(cut.latest())
    row: Row = {"original": scores(work, "original"), "dropped": sorted(plan.dropped if plan else ())}
    if cell["way"] == "width":
        row |= (told := _as_fast(work, cut, place))
        cut = _narrow(work, told["ratios"], place)
        done = cut.plan(cut.latest())
        row["widths"] = [width.after for width in done.widths.values()] if done else []
    tuned = Finetune(epochs=cell["tuning"])(dataclasses.replace(cut, directory=place))
    return {**row, "raw": scores(cut, cut.latest().name), "tuned": scores(tuned, "tuned")}


def _as_fast(work: Work, cut: Work, place: Path) -> Row:
    """The widths that take as long as the shallow network, and both beside the original."""
    paths = {"original": place / "original.onnx", "shallow": place / "shallow.onnx"}
    place.mkdir(parents=True, exist_ok=True)
    for name, source in (("original", work), ("shallow", cut)):
        _export(source.model(source.variant(name)), paths[name])
    first = _nearest(paths["shallow"], _stairs(), COARSE)[0]
    widths = _made([first, *_neighbours(first)])
    shares = _nearest(paths["shallow"], widths, FINE)[:NEAREST]
    nearest = {_name(one): one for one in shares}
    for name, one in nearest.items():
        paths[name] = place / f"{name}.onnx"
        _export(_narrow(work, one, place / name).model(), paths[name])
    final = time_together(paths, protocol=FINAL)
    against = {name: judge(final[name], final["shallow"]) for name in nearest}
    chosen = min(nearest, key=lambda name: abs(math.log(against[name].ratio)))
    depth, width = (judge(final["original"], final[name]) for name in ("shallow", chosen))
    return {
        "ratios": nearest[chosen],
        "speed": {"depth": _told(depth), "width": _told(width)},
        "depth over width": _told(against[chosen]),
        "overlap": depth.low <= width.high and width.low <= depth.high,
        "events": FINAL.events,
    }


def _nearest(shallow: Path, widths: Mapping[Path, Shares], protocol: Protocol) -> list[Shares]:
    """Those whose networks take about as long as the shallow one, the nearest first."""
    timed = time_together({"shallow": shallow, **{path.stem: path for path in widths}}, protocol=protocol)
    apart = {path: abs(math.log(judge(timed["shallow"], timed[path.stem]).ratio)) for path in widths}
    return [widths[path] for path in sorted(widths, key=lambda path: apart[path])]


@functools.cache
def _stairs() -> Mapping[Path, Shares]:
    """Layer by layer, the widest first, to each of the levels."""
    groups = sorted(_untrained()[1], key=lambda group: -group.size)
    tried: list[Shares] = []
    shares: Shares = {}
    for level in LEVELS:
        for group in groups:
            shares = shares | {group.name: level}
            tried.append(shares)
    return _made(tried)


def _neighbours(shares: Shares) -> list[Shares]:
    """The same with an eighth of one layer more, or less."""
    moved = [shares | {name: share + step} for name, share in shares.items() for step in (-STEP, STEP)]
    return [one for one in moved if all(STEP <= share <= 1 - STEP for share in one.values())]


def _made(tried: Sequence[Shares]) -> dict[Path, Shares]:
    """The networks with these shares, as files; never trained, as their time does not depend on weights."""
    folder = PLACE / "widths"
    folder.mkdir(parents=True, exist_ok=True)
    model, groups = _untrained()
    drawn = {group.name: torch.rand(group.size) for group in groups}
    paths = {folder / f"{_name(shares)}.onnx": shares for shares in tried}
    for path, shares in paths.items():
        if not path.exists():
            keep = {name: round((1 - share) * groups[name].size) for name, share in shares.items()}
            _export(apply(model, choose(groups, drawn, keep=keep), groups), path)
    return paths


@functools.cache
def _untrained() -> tuple[nn.Module, Groups]:
    torch.manual_seed(0)
    model = workload_of("cnn").build_model().eval()
    return model, trace(model, workload_of("cnn").example_inputs())


def _name(shares: Shares) -> str:
    return "-".join(f"{name}_{share:g}" for name, share in sorted(shares.items()))


def _narrow(work: Work, ratios: Shares, place: Path) -> Work:
    """The original with these shares of its layers' neurons removed, those with the weakest activations."""
    stage = Prune(ratios=dict(ratios), criterion="activation", align=False)
    return stage(dataclasses.replace(work, directory=place))


def _with(work: Work, name: str) -> Work:
    """The work with a network that an earlier run saved in its directory."""
    files = {"weights": "model.safetensors", "plan": "plan.json"}
    there = {kind: work.directory / name / file for kind, file in files.items()}
    made = {kind: Artifact.of(path) for kind, path in there.items() if path.exists()}
    return work.with_variant(Variant(name, made))


def _export(model: nn.Module, path: Path) -> None:
    to_onnx(model, workload_of("cnn").example_inputs(), path)


def _told(found: Judgement) -> list[float]:
    return [round(value, 4) for value in (found.ratio, found.low, found.high)]


def table(rows: Sequence[Row], wanted: Sequence[Cell]) -> str:
    """A line for each number of blocks and each way; and what decides, seed by seed."""
    rows = [row for row in rows if row["cell"] in wanted]
    lines, words = [], []
    for blocks in BLOCKS:
        here = {way: found(rows, {"blocks": blocks, "way": way}) for way in ("depth", "width")}
        for way, own in here.items():
            lines.append(
                [
                    f"{blocks} of 3 blocks" if way == "depth" else "as fast, narrower",
                    _choices(own, way),
                    spread([100 * (1 - row["raw"]["parameters"] / _whole(row)) for row in own]),
                    _ratios(row["speed"][way] for row in here["width"]),
                    spread([_change(row, "raw") for row in own], sign=True),
                    spread([_change(row, "tuned") for row in own], sign=True),
                ]
            )
        for when in ("raw", "tuned"):
            twins = {row["cell"]["seed"]: _change(row, when) for row in here["width"]}
            against = [
                _change(row, when) - twins[row["cell"]["seed"]]
                for row in here["depth"]
                if row["cell"]["seed"] in twins
            ]
            told = paired(against).words() if len(against) > 1 else "missing"
            words.append(f"{blocks} of 3 blocks, {when}: depth less width {told} points, n {len(against)}.")
        straight = _ratios(row["depth over width"] for row in here["width"])
        overlap = sum(row["overlap"] for row in here["width"])
        words.append(
            f"{blocks} of 3 blocks: the two intervals overlap in {overlap} of {len(here['width'])}; timed "
            f"straight against each other, the narrow one takes as many times as long: {straight}."
        )
    head = [
        "",
        "blocks dropped, or widths left, by seed",
        "parameters removed, %",
        "speed-up, by seed",
        "raw",
        "tuned",
    ]
    whole = spread(sorted({row["original"]["test"] for row in rows}))
    about = f"cnn: original {whole} %; changes in points of test accuracy."
    return "\n\n".join([about, markdown(head, lines), "\n".join(words), missing_words(rows, wanted)])


def _choices(rows: Sequence[Row], way: str) -> str:
    ordered = sorted(rows, key=lambda row: int(row["cell"]["seed"]))
    told = [
        " ".join(row["dropped"]) if way == "depth" else "-".join(map(str, row["widths"])) for row in ordered
    ]
    return "; ".join(told) or "missing"


def _ratios(told: Iterable[Sequence[float]]) -> str:
    return "; ".join(f"{ratio:.2f} [{low:.2f}, {high:.2f}]" for ratio, low, high in told) or "missing"


def _whole(row: Row) -> float:
    return float(row["original"]["parameters"])


def _change(row: Row, when: str) -> float:
    return float(row[when]["test"] - row["original"]["test"])


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=3, help="of the originals")
    parser.add_argument("--tuning", type=int, default=1, help="epochs after the cut")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    wanted = cells(given.epochs, given.tuning)
    torch.set_num_threads(1)
    done = [row["cell"] for row in recorded(RECORD)]
    for cell in () if given.table else [cell for cell in wanted if cell not in done]:
        started = time.monotonic()
        row = measure(cell)
        seconds = math.ceil(time.monotonic() - started)
        append(RECORD, {"cell": cell, **row, "seconds": seconds, "machine": machine()})
        print(f"{cell}: {row['raw']['test']}, {row['tuned']['test']}", file=sys.stderr)
    print(table(recorded(RECORD), wanted))


if __name__ == "__main__":
    main()
