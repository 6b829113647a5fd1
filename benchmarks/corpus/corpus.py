"""The corpus: strangers' ONNX files through the commands, in one process that is watched from outside.

    python benchmarks/corpus/corpus.py [--only TEXT] [--limit 60]
    python benchmarks/corpus/corpus.py --table      the table of what was measured so far, in Markdown

Every file goes through `lint`, `memory`, `pack` and `unpack`; every one from a wheel, and one backend test in
five, through `profile`, `quantize` and `compare` with itself. What was done stands in runs/corpus.jsonl and
is not done again, so it can be stopped at any moment.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.record import Row, append, recorded
from benchmarks.common.worker import BAD, Worker
from benchmarks.corpus.models import Model, licence, models
from benchmarks.corpus.steps import QUICK, SLOW

KINDS = ("done", "refused", *BAD[:4])
PAGES = 256 << 10  # of a runtime's own, beside a small model


def measure(model: Model, part: str, worker: Worker) -> Row:
    """A model through the commands of a part, "quick" or "slow"."""
    row: Row = {"name": model.name, "part": part, "origin": model.origin, "bytes": model.path.stat().st_size}
    steps: dict[str, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        shapes = None
        if part == "slow":
            found = worker.ask(("samples", str(model.path), None, folder))
            shapes = (found.gave or {}).get("shapes")
        for name in QUICK if part == "quick" else SLOW:
            if name == "quantize" and shapes is None:
                continue  # nothing was found that it runs on
            started = time.monotonic()
            ended = worker.ask((name, str(model.path), shapes, folder))
            told = {"kind": ended.kind, "says": ended.says, "gave": ended.gave}
            steps[name] = {**told, "wall_s": round(time.monotonic() - started, 2)}
    return {**row, "shapes": shapes, "steps": steps}


def joined(rows: Sequence[Row]) -> list[Row]:
    """One row a model, with the steps of both parts."""
    found: dict[str, Row] = {}
    for row in rows:
        before = found.get(row["name"], {"steps": {}})
        found[row["name"]] = {**before, **row, "steps": {**before["steps"], **row["steps"]}}
    return list(found.values())


def broken_bound(row: Row) -> str:
    """Which end of the band that `memory` tells a measurement breaks; "" for none."""
    gave = row["steps"].get("profile", {}).get("gave") or {}
    if not gave.get("resident"):
        return ""
    if gave["low"] > gave["resident"] + PAGES:
        return "lower"
    above = gave["high"] is not None and gave["resident"] > gave["high"] + PAGES
    return "upper" if above else ""


def tables(rows: Sequence[Row], folder: Path) -> str:
    """What became of all commands, each broken bound, the real networks, and the licences."""
    real = [row for row in rows if row["origin"] != "onnx"]
    lines = [
        f"{len(rows)} files: {len(real)} from wheels, {len(rows) - len(real)} of onnx's backend tests.",
        "",
    ]
    lines += [f"| command | files | {' | '.join(KINDS)} | slowest, s |", "| --- " * (len(KINDS) + 3) + "|"]
    for name in (*QUICK, *SLOW):
        ended = [row["steps"][name] for row in rows if name in row["steps"]]
        counts = Counter(one["kind"] for one in ended)
        numbers = " | ".join(str(counts[kind]) for kind in KINDS)
        slowest = max((one["wall_s"] for one in ended), default=0)
        title = "pack, unpack" if name == "pack" else name
        lines.append(f"| {title} | {len(ended)} | {numbers} | {slowest:.0f} |")
    known = [row for row in rows if (row["steps"].get("profile", {}).get("gave") or {}).get("resident")]
    broken = Counter(map(broken_bound, known))
    lines += ["", f"Memory measured of {len(known)}: above the upper end {broken['upper']}, "]
    lines[-1] += f"below the lower end {broken['lower']}."
    lines += [
        "",
        "| network | MB | memory, MB: at least, measured, at most | layers in INT8 | noise: told | true |",
    ]
    lines[-1] += " verdict |"
    lines += ["| --- " * 7 + "|", *(_real(row) for row in real)]
    stated = {name: licence(name, folder) for name in dict.fromkeys(row["origin"] for row in real)}
    lines += ["", "Licences: " + "; ".join(f"{name} {what}" for name, what in stated.items()) + "."]
    return "\n".join(lines)


def _real(row: Row) -> str:
    gave = {name: one.get("gave") or {} for name, one in row["steps"].items()}
    band = gave.get("profile", {})
    cells = [row["name"], f"{row['bytes'] / 1e6:.1f}"]
    memory = [band.get(key) for key in ("low", "resident", "high")]
    cells.append(", ".join("not known" if one is None else f"{one / 1e6:.1f}" for one in memory))
    int8 = gave.get("quantize", {})
    if not int8:
        says = row["steps"].get("quantize", {}).get("says", "no input was found that it runs on")
        return f"| {' | '.join([*cells, '', '', '', _short(says)])} |"
    told = max(int8["told"], key=int8["told"].get, default="")
    true = int8["true"].get(told)
    cells.append(f"{int8['layers'][0]} of {sum(int8['layers'])}")
    cells += [f"{int8['told'][told]:.2%}" if told else "", "" if true is None else f"{true:.2%}"]
    return f"| {' | '.join([*cells, int8['verdict']])} |"


def _short(text: str) -> str:
    return " ".join(text.replace("|", "/").split())[:160]


def main() -> int:
    """The command line; exit code 1 where something was bad."""
    parser = argparse.ArgumentParser(description="Strangers' ONNX files through the commands.")
    parser.add_argument("--folder", type=Path, default=Path("runs/corpus"))
    parser.add_argument("--only", default="", metavar="TEXT", help="files with this text in their name")
    parser.add_argument(
        "--limit", type=float, default=60, help="seconds of the processor that a command may take"
    )
    parser.add_argument("--record", type=Path, default=Path("runs/corpus.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the tables only")
    given = parser.parse_args()
    known = {(row["name"], row["part"]) for row in recorded(given.record)}
    worker = Worker("benchmarks.corpus.steps", "step", limit_s=given.limit)
    every = [] if given.table else [one for one in models(given.folder) if given.only in one.name]
    parts = [*((one, "quick") for one in every), *((one, "slow") for one in every if one.whole)]
    try:
        for model, part in parts:
            if (model.name, part) in known:
                continue
            row = measure(model, part, worker)
            append(given.record, row)
            for name, one in row["steps"].items():
                if one["kind"] in BAD:
                    print(f"{model.name}: {name}: {one['kind']}: {one['says']}", file=sys.stderr, flush=True)
    finally:
        worker.stop()
    rows = joined(recorded(given.record))
    print(tables(rows, given.folder))
    return int(any(one["kind"] in BAD for row in rows for one in row["steps"].values()))


if __name__ == "__main__":
    sys.exit(main())
