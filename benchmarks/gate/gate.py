"""How often does the gate cry wolf, and what does it find? Events with planted answers, kept and counted.

    python benchmarks/gate/gate.py run --hours 1 [--busy [others]]   # adds to runs/gate/events.jsonl
    python benchmarks/gate/gate.py coverage --hours 1                # do 95 % intervals hold the true ratio?
    python benchmarks/gate/gate.py table                             # exact counts and intervals, as Markdown

An event is a whole decision of `deadweight gate`: both files loaded anew again and again, drawn until decided
or until 20 s are over. Equal files, and files that are truly some 5 and 10 % slower (`planted_networks`);
three sizes; with nothing else running ("quiet") or with every core kept busy by other processes ("busy"): by
loops that this starts, or by others' work. What the machine was is read from its load, whatever was asked
for; what lies between counts for neither ("shared").
Rules that others use are applied to the same samples, and to a baseline that was stored by the event before,
which is how they are used. The file can be interrupted and added to at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.record import Row, append, recorded
from benchmarks.gate.planted_networks import SIZES, base, plant
from deadweight.targets.machine.probe import cpu_name
from deadweight.targets.timing.binomial import clopper_pearson
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Protocol
from deadweight.targets.timing.sequential import compare_until_decided, sequential_protocol, slowdown

FOLDER = Path("runs/gate")
EVENTS, COVERAGE = FOLDER / "events.jsonl", FOLDER / "coverage.jsonl"
LIMIT, CAP_S = 0.02, 20.0
SHARES = ("0", "5", "10")
GOALS = {("quiet", "0"): 600, ("busy", "0"): 200}
"""Events in all three sizes together; 100 a cell for the planted ones."""


def planted(folder: Path) -> dict[str, dict[str, Path]]:
    """The networks, planted once a machine: size -> share -> file; kept in planted.json."""
    kept = folder / "planted.json"
    if not kept.exists():
        found = {}
        for size in SIZES:
            print(f"planting in the {size} network", file=sys.stderr)
            found[size] = plant(folder, size, (0.05, 0.10))
        kept.write_text(json.dumps(found))
    read = json.loads(kept.read_text())
    return {size: {share: Path(one["path"]) for share, one in of.items()} for size, of in read.items()}


@contextmanager
def burning(busy: bool) -> Iterator[None]:
    """Every core kept busy by another process, where asked for."""
    others = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range((os.cpu_count() or 1) * busy)
    ]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def rivals(base_s: NDArray[np.float64], candidate_s: NDArray[np.float64]) -> dict[str, bool]:
    """What rules that others use say of two samples of wall times: True is an alarm."""
    from scipy import stats

    mean, other = float(base_s.mean()), float(candidate_s.mean())
    return {
        "mean > 5 %": other > 1.05 * mean,
        "ratio > 2.0": other > 2.0 * mean,
        "Mann-Whitney p < 0.01": bool(
            stats.mannwhitneyu(candidate_s, base_s, alternative="greater").pvalue < 0.01
        ),
        "mean and deviation apart": other - float(candidate_s.std(ddof=1)) > mean + float(base_s.std(ddof=1)),
    }


def decided(row_slowdown: tuple[float, float, float]) -> str:
    """The gate's answer: fail, pass, or cannot_tell."""
    _, low, high = row_slowdown
    return "fail" if low > LIMIT else "pass" if high < LIMIT else "cannot_tell"


def one_event(
    size: str, share: str, candidate: Path, *, busy: bool, stored: NDArray[np.float64] | None
) -> tuple[Row, NDArray[np.float64]]:
    """One decision, and the wall times of its baseline for the next event's rivals to be compared with."""
    load = os.getloadavg()[0]
    started = time.perf_counter()
    compared = compare_until_decided(
        base(FOLDER / "networks", size),
        candidate,
        protocol=sequential_protocol(cap_s=CAP_S),
        decided=lambda judgement, _: decided(slowdown(judgement)) != "cannot_tell",
    )
    seconds = time.perf_counter() - started
    judgement = compared.judgement
    baseline, other = compared.measured["baseline"], compared.measured["candidate"]
    marked = len({mark.event for mark in baseline.marks})
    condition = condition_of(load, marked / judgement.events, burning=busy)
    base_s = baseline.wall_s.ravel()
    row = {
        "size": size,
        "share": share,
        "condition": condition,
        "load": round(load, 2),
        "marked": marked,
        "gate": decided(slowdown(judgement)),
        "compare": judgement.outcome,
        "ratio": judgement.ratio,
        "low": judgement.low,
        "high": judgement.high,
        "events": judgement.events,
        "seconds": round(seconds, 2),
        "same": rivals(base_s, other.wall_s.ravel()),
        "stored": rivals(stored, other.wall_s.ravel()) if stored is not None else None,
        "machine": cpu_name(),
        "at": int(time.time()),
    }
    return row, base_s


def condition_of(load: float, marked: float, *, burning: bool) -> str:
    """Quiet, busy, or shared; this process adds up to one to the load itself.

    Busy is also what others make so: as many of their processes as there are cores, or more.
    """
    if burning or load >= (os.cpu_count() or 1) + 1:
        return "busy"
    return "quiet" if load < 1.5 and marked < 0.5 else "shared"


def run(hours: float, *, busy: str) -> None:
    """Adds events until the time is over, those first that are furthest from their goal.

    `busy` is "loops" for loops of our own, "others" where other work keeps the machine busy, or "".
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    slower = planted(FOLDER / "networks")
    condition = "busy" if busy else "quiet"
    had: dict[tuple[str, str], float] = dict.fromkeys(((s, p) for s in SIZES for p in SHARES), 0)
    for row in recorded(EVENTS):
        if row["condition"] == condition:
            had[row["size"], row["share"]] += 1
    goal = {cell: GOALS[condition, "0"] / 3 if cell[1] == "0" else 100 for cell in had}
    end, stored = time.time() + 3600 * hours, dict[str, NDArray[np.float64]]()
    loops = busy == "loops"
    with burning(loops):
        if loops:
            time.sleep(20)  # until the load says so
        while time.time() < end:
            size, share = min(had, key=lambda cell: (had[cell] / goal[cell], cell))
            path = base(FOLDER / "networks", size) if share == "0" else slower[size][share]
            row, stored[size] = one_event(size, share, path, busy=loops, stored=stored.get(size))
            append(EVENTS, row)
            had[size, share] += 1
            print(row["condition"], size, share, row["gate"], f"{row['seconds']} s, load {row['load']}")


def coverage(hours: float) -> None:
    """Fixed runs of 24 events, and the true ratio from 50 times as many, in one process, by turns."""
    slower = planted(FOLDER / "networks")
    protocol = Protocol(event_s=0.01, block_s=0.002, settle_s=0.001)
    end = time.time() + 3600 * hours
    cells = [(size, share) for size in SIZES[:2] for share in ("0", "5", "10")]
    had = [(row["size"], row["share"]) for row in recorded(COVERAGE)]
    while time.time() < end:
        size, share = min(cells, key=had.count)
        had.append((size, share))
        path = base(FOLDER / "networks", size) if share == "0" else slower[size][share]
        models = {"baseline": base(FOLDER / "networks", size), "candidate": path}
        timed = time_together(models, protocol=replace(protocol, events=24 * 51))
        blocks = [_slice(timed, at) for at in range(51)]
        append(
            COVERAGE,
            {
                "size": size,
                "share": share,
                "load": os.getloadavg()[0],
                "truth": [judge(*_without(timed, at)).ratio for at in range(51)],
                "intervals": [[found.low, found.high] for found in (judge(*block) for block in blocks)],
            },
        )


def _slice(timed: Mapping[str, Any], at: int) -> tuple[Any, Any]:
    keep = slice(24 * at, 24 * at + 24)
    return tuple(
        replace(one, wall_ns=one.wall_ns[keep], cpu_ns=one.cpu_ns[keep], marks=()) for one in timed.values()
    )


def _without(timed: Mapping[str, Any], at: int) -> tuple[Any, Any]:
    """The other fifty runs: the truth must not hold the samples that are tried against it."""
    drop = np.s_[24 * at : 24 * at + 24]
    return tuple(
        replace(one, wall_ns=np.delete(one.wall_ns, drop, 0), cpu_ns=np.delete(one.cpu_ns, drop, 0), marks=())
        for one in timed.values()
    )


def share_text(count: int, total: int) -> str:
    """A count with its rate and interval: `3/600 = 0.5 % (0.1 to 1.5)`."""
    if not total:
        return "not measured"
    low, high = clopper_pearson(count, total)
    return f"{count}/{total} = {100 * count / total:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _crowd(row: Row) -> str:
    """Busy is as many other processes as cores, or some more; beyond four times as many it is crowded."""
    crowded = row["condition"] == "busy" and row["load"] > 4 * (os.cpu_count() or 1)
    return "crowded" if crowded else str(row["condition"])


def table() -> None:
    """Markdown on stdout; cells without events are left out."""
    rows = [{**row, "condition": _crowd(row)} for row in recorded(EVENTS)]
    print(
        "| condition | planted | size | gate fails | compare says slower | cannot tell | faster | median s |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for condition in ("quiet", "busy", "crowded", "shared"):
        for share in SHARES:
            for size in (*SIZES, "all"):
                cell = [
                    row
                    for row in rows
                    if row["condition"] == condition
                    and row["share"] == share
                    and size in (row["size"], "all")
                ]
                counts = [
                    share_text(sum(row[key] == value for row in cell), len(cell))
                    for key, value in (
                        ("gate", "fail"),
                        ("compare", "slower"),
                        ("gate", "cannot_tell"),
                        ("compare", "faster"),
                    )
                ]
                seconds = f"{np.median([row['seconds'] for row in cell]):.1f}" if cell else ""
                print(f"| {condition} | {share} % | {size} | {' | '.join(counts)} | {seconds} |")
    print("\n| rule | condition | baseline | alarms at 0 % | at 5 % | at 10 % |\n" + "| --- " * 6 + "|")
    for condition in ("quiet", "busy", "crowded", "shared"):
        for held in ("same", "stored"):
            kept = [row for row in rows if row["condition"] == condition and row[held]]
            for rule in kept[0][held] if kept else ():
                cells = []
                for share in SHARES:
                    alarms = [row[held][rule] for row in kept if row["share"] == share]
                    cells.append(share_text(sum(alarms), len(alarms)))
                print(f"| {rule} | {condition} | {held} | {' | '.join(cells)} |")
    print("\n| size | planted | intervals that hold the true ratio |\n| --- | --- | --- |")
    found = recorded(COVERAGE)
    for size, share in sorted({(row["size"], row["share"]) for row in found}):
        inside = [
            low <= truth <= high
            for row in found
            if (row["size"], row["share"]) == (size, share)
            for truth, (low, high) in zip(row["truth"], row["intervals"], strict=True)
        ]
        print(f"| {size} | {share} % | {share_text(sum(inside), len(inside))} |")


def main() -> None:
    """Adds events, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("run", "coverage", "table"))
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--busy", nargs="?", default="", const="loops", choices=("loops", "others"))
    arguments = parser.parse_args()
    if arguments.what == "table":
        table()
    elif arguments.what == "coverage":
        coverage(arguments.hours)
    else:
        run(arguments.hours, busy=arguments.busy)


if __name__ == "__main__":
    main()
