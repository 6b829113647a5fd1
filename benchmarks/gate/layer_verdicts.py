"""Are verdicts on layers right? Planted nulls, and layers a quarter narrower, in chains of twenty.

    python benchmarks/gate/layer_verdicts.py run --hours 0.3     # adds families to runs/layers/families.jsonl
    python benchmarks/gate/layer_verdicts.py table

A family is one comparison of two networks of twenty 3x3 convolutions. In "equal" families both files are the
same bytes, loaded anew each time: any layer called faster is a family-wise error. In "narrow" families every
fourth layer has a quarter fewer outputs, so that it and the next have a quarter fewer weights: those ten
should be found, and of the other ten none.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.record import append, recorded
from benchmarks.gate.gate import share_text
from benchmarks.gate.planted_networks import chain
from deadweight.targets.machine.probe import cpu_name
from deadweight.targets.timing.layers import judge_layers
from deadweight.targets.timing.ort_layers import time_layers

FOLDER = Path("runs/layers")
FAMILIES = FOLDER / "families.jsonl"
LAYERS, CHANNELS, PIXELS = 20, 64, 14


def networks() -> dict[str, Path]:
    """The chain as it is, and with every fourth layer narrowed by a quarter."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    widths = [CHANNELS] * (LAYERS + 1)
    narrow = [3 * width // 4 if at % 4 == 2 else width for at, width in enumerate(widths)]
    return {
        "equal": chain(FOLDER / "equal.onnx", widths=widths, size=PIXELS),
        "narrow": chain(FOLDER / "narrow.onnx", widths=narrow, size=PIXELS),
    }


def family(kind: str, paths: dict[str, Path]) -> dict[str, Any]:
    """One comparison: what was said of layers that were narrowed, and of those that were not."""
    load = os.getloadavg()[0]
    timed = time_layers({"baseline": paths["equal"], "candidate": paths[kind]})
    judged = judge_layers(timed["baseline"], timed["candidate"])
    return {
        "kind": kind,
        "load": round(load, 2),
        "narrowed": [one.outcome for one in judged if one.pruned],
        "same": [one.outcome for one in judged if not one.pruned],
        "machine": cpu_name(),
        "at": int(time.time()),
    }


def table() -> None:
    """Markdown on stdout."""
    rows = recorded(FAMILIES)
    print("| what | count (95 % interval) |\n| --- | --- |")
    equal = [row for row in rows if row["kind"] == "equal"]
    nulls = [outcome for row in equal for outcome in row["same"]]
    told = share_text(sum("faster" in row["same"] for row in equal), len(equal))
    print(f"| equal families with any layer called faster | {told} |")
    told = share_text(sum({"faster", "slower"} & set(row["same"]) != set() for row in equal), len(equal))
    print(f"| equal families with any layer called faster or slower | {told} |")
    print(f"| null layers called faster | {share_text(nulls.count('faster'), len(nulls))} |")
    narrow = [row for row in rows if row["kind"] == "narrow"]
    found = [outcome for row in narrow for outcome in row["narrowed"]]
    print(f"| layers a quarter narrower called faster | {share_text(found.count('faster'), len(found))} |")
    beside = [outcome for row in narrow for outcome in row["same"]]
    print(f"| their unchanged neighbours called faster | {share_text(beside.count('faster'), len(beside))} |")
    if rows:
        loads = [row["load"] for row in rows]
        print(f"\nLoad {min(loads)} to {max(loads)}, {rows[-1]['machine']}.")


def main() -> None:
    """Adds families, two equal ones for each narrow one, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--hours", type=float, default=0.3)
    arguments = parser.parse_args()
    if arguments.what == "table":
        table()
        return
    paths, end = networks(), time.time() + 3600 * arguments.hours
    while time.time() < end:
        kind = "narrow" if len(recorded(FAMILIES)) % 3 == 2 else "equal"
        row = family(kind, paths)
        append(FAMILIES, row)
        print(kind, {name: {o: row[name].count(o) for o in set(row[name])} for name in ("narrowed", "same")})


if __name__ == "__main__":
    main()
