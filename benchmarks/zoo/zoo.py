"""The zoo: every network halved by deadweight and by Torch-Pruning, in one run, side by side.

    python benchmarks/zoo/zoo.py [--tools ours rival] [--LIST] [--only NAME ...] [--without CHECK ...]
    python benchmarks/zoo/zoo.py --table          the tables of what was measured so far, in Markdown

Needs torchvision, timm, transformers and torch-pruning 1.6.1 beside deadweight. One process a row; what was
measured stands in runs/zoo.jsonl and is not measured again, so it can be stopped at any moment.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Lock

from rich.progress import Progress

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.record import Row, append, recorded
from benchmarks.zoo.forty import ALSO, FORTY
from benchmarks.zoo.further_networks import FURTHER, LARGE
from benchmarks.zoo.networks import NETWORKS, UNSEEN, Network
from benchmarks.zoo.table import tables
from deadweight.pipeline.pruning import surgery
from deadweight.pipeline.runs.sources import source_hash
from deadweight.targets.machine.probe import versions

HERE = Path(__file__).parent
SCRIPTS = {"ours": "row_ours.py", "rival": "row_torch_pruning.py"}
LISTS = {
    "unseen": (UNSEEN, "the networks kept for a forecast"),
    "further": (FURTHER, "those looked at afterwards"),
    "also": (ALSO, "those of earlier trials"),
    "forty": (FORTY, "those of other libraries"),
    "large": (LARGE, "two large ones; leave out judged, second and heads_too"),
}


def measure(tool: str, network: Network, limit_s: float, skipped: Sequence[str] = ()) -> Row:
    """One row, in a process of its own on one thread; "gave_up" where it did not come back in time.

    Args:
        limit_s: of the processor's time; one that waits without end is stopped after six times that.
        skipped: checks of ours that are left out.
    """
    started = time.monotonic()
    script = HERE / SCRIPTS[tool]
    done: Row
    try:
        process = subprocess.run(
            ["prlimit", f"--cpu={limit_s:.0f}", sys.executable, str(script), network.name]
            + (list(skipped) if tool == "ours" else []),
            capture_output=True,
            text=True,
            timeout=6 * limit_s,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
            raise subprocess.TimeoutExpired(str(script), limit_s)
        lines = process.stdout.strip().splitlines()
        done = json.loads(lines[-1]) if process.returncode == 0 else {"crashed": process.stderr[-1500:]}
    except subprocess.TimeoutExpired:
        done = {"gave_up": f"no answer in {limit_s:.0f} s"}
    wall_s = round(time.monotonic() - started, 1)
    told = {"tool": tool, "name": network.name, "family": network.family, "wall_s": wall_s}
    return told | {"code": _code(), "versions": versions("torch", "timm", "transformers")} | done


@cache
def _code() -> str:
    """A hash of everything that the core is made of: rows of two codes are not one table."""
    return source_hash(Path(surgery.__file__))[:12]


def run(
    networks: Sequence[Network],
    tools: Sequence[str],
    record: Path,
    *,
    jobs: int,
    limits_s: Mapping[str, float],
    skipped: Sequence[str],
) -> None:
    """Measures what is missing; both tools of a network one after the other."""
    known = {(row["tool"], row["name"]) for row in recorded(record)}
    missing = [(tool, one) for one in networks for tool in tools if (tool, one.name) not in known]
    lock = Lock()
    with Progress() as progress, ThreadPoolExecutor(jobs) as workers:
        bar = progress.add_task("zoo", total=len(missing))

        def one(task: tuple[str, Network]) -> None:
            row = measure(*task, limits_s[task[0]], skipped)
            with lock:
                append(record, row)
            progress.update(bar, advance=1, description=f"zoo: {row['name']} ({row['tool']})")

        list(workers.map(one, missing))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Every network of the zoo, halved.")
    parser.add_argument("--tools", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    for name, (some, what) in LISTS.items():
        parser.add_argument(f"--{name}", action="store_const", const=some, dest="networks", help=what)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="CHECK", help="checks of ours to leave out"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=float, default=400, help="seconds a row of ours may take")
    parser.add_argument("--rival-limit", type=float, default=150, help="and one of the rival's")
    parser.add_argument("--record", type=Path, default=Path("runs/zoo.jsonl"))
    parser.add_argument("--table", action="store_true", help="print the tables only")
    given = parser.parse_args()
    networks: tuple[Network, ...] = given.networks or NETWORKS
    if unknown := set(given.only) - {one.name for one in networks}:
        parser.error(f"not in the zoo: {', '.join(sorted(unknown))}")
    if given.only:
        networks = tuple(next(one for one in networks if one.name == name) for name in given.only)
    limits_s = {"ours": given.limit, "rival": given.rival_limit}
    if not given.table:
        run(networks, given.tools, given.record, jobs=given.jobs, limits_s=limits_s, skipped=given.without)
    print(tables(recorded(given.record), [one.name for one in networks]))


if __name__ == "__main__":
    main()
