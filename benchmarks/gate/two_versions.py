"""Does a change of the code cost the gate its quality? Two checkouts decide on the same files in turn.

    python benchmarks/gate/two_versions.py run OTHER_CHECKOUT --hours 1    # adds to runs/gate
    python benchmarks/gate/two_versions.py table

Each checkout has a process that waits for pairs of files; only one decides at a time, in random order. So the
machine's load and drift are the same for both. Equal files are A/A; the others do some 6 % more work.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
ROWS, NETWORKS = Path("runs/gate/two_versions.jsonl"), Path("runs/gate/two_versions")
LIMIT, CAP_S = 0.02, 20.0


def serve() -> None:
    """Decides on each pair of paths from stdin; the checkout is the first on the path of imports."""
    from deadweight.targets.timing.judge import Judgement
    from deadweight.targets.timing.sequential import compare_until_decided, sequential_protocol, slowdown

    def answer(judgement: Judgement) -> str:
        _, low, high = slowdown(judgement)
        return "fail" if low > LIMIT else "pass" if high < LIMIT else "cannot_tell"

    for line in sys.stdin:
        before, after = map(Path, json.loads(line))
        load, started = os.getloadavg()[0], time.perf_counter()
        found = compare_until_decided(
            before,
            after,
            protocol=sequential_protocol(cap_s=CAP_S),
            decided=lambda judgement, _: answer(judgement) != "cannot_tell",
        ).judgement
        seconds = time.perf_counter() - started
        row = {"gate": answer(found), "compare": found.outcome, "ratio": found.ratio, "events": found.events}
        print(json.dumps({**row, "seconds": seconds, "load": load}), flush=True)


def run(other: Path, hours: float) -> None:
    """Adds decisions of both checkouts until the time is over."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.common.record import append
    from benchmarks.gate.planted_networks import base, convolutions, dense

    folder = NETWORKS.absolute()
    small, middle = base(folder, "small"), base(folder, "middle")
    pairs = {
        ("small", "0"): (small, small),
        ("small", "6"): (small, dense(folder / "small-6.onnx", added=96)),
        ("middle", "0"): (middle, middle),
        ("middle", "6"): (
            middle,
            convolutions(folder / "middle-6.onnx", channels=32, size=28, layers=6, added=96),
        ),
    }
    command = [sys.executable, str(Path(__file__).absolute()), "serve"]
    checkouts = {"before": other, "now": ROOT}
    workers = {
        name: subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": str(place.absolute())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, place in checkouts.items()
    }
    end = time.time() + 3600 * hours
    while time.time() < end:
        for cell in random.sample(list(pairs), len(pairs)):
            for name in random.sample(list(workers), len(workers)):
                worker = workers[name]
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write(json.dumps([str(path) for path in pairs[cell]]) + "\n")
                worker.stdin.flush()
                row = {
                    "code": name,
                    "size": cell[0],
                    "share": cell[1],
                    **json.loads(worker.stdout.readline()),
                }
                append(ROWS, row)
    for worker in workers.values():
        worker.communicate()


def table() -> None:
    """Markdown on stdout."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.common.record import recorded
    from benchmarks.gate.gate import share_text

    rows = recorded(ROWS)
    print("| code | planted | gate fails | cannot tell | faster | median s | events | spread of ratios |")
    print("| --- " * 8 + "|")
    for share in ("0", "6"):
        for code in ("before", "now"):
            cell = [row for row in rows if row["share"] == share and row["code"] == code]
            if not cell:
                continue
            counts = [
                share_text(sum(row[key] == value for row in cell), len(cell))
                for key, value in (("gate", "fail"), ("gate", "cannot_tell"), ("compare", "faster"))
            ]
            middle = [f"{np.median([row[key] for row in cell]):.1f}" for key in ("seconds", "events")]
            ratios = {
                size: [row["ratio"] for row in cell if row["size"] == size] for size in ("small", "middle")
            }
            spread = ", ".join(f"{size} {100 * np.std(one):.2f} %" for size, one in ratios.items() if one)
            print(f"| {code} | {share} % | {' | '.join(counts)} | {' | '.join(middle)} | {spread} |")


def main() -> None:
    """Adds decisions, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("run", "serve", "table"))
    parser.add_argument("other", type=Path, nargs="?", help="the other checkout")
    parser.add_argument("--hours", type=float, default=1.0)
    arguments = parser.parse_args()
    if arguments.what == "run":
        run(arguments.other, arguments.hours)
    else:
        {"serve": serve, "table": table}[arguments.what]()


if __name__ == "__main__":
    main()
