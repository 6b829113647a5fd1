"""The same sweep of 24 trials by the pool, by Ray on one node and on three, with a node killed, and resumed.

    python benchmarks/scale/executors.py [--rounds 2] [--epochs 20] [--only pool one]
    python benchmarks/scale/executors.py --table

Pool and Ray run two trials at a time with one thread each, on the same cores, in turn: every round has each,
the first one alternates. Equal are the rows of the table without times, and the SHA-256 of every file that a
stage made. `--only pool one` leaves out three nodes and what follows; the efficiency is that of the rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(1, str(Path(__file__).parents[2] / "tests"))

import torch
from support.clusters import cluster

from benchmarks.common.record import append, recorded
from benchmarks.scale.small import RECIPE
from deadweight.pipeline.recipe import SweepSettings, read_recipe
from deadweight.pipeline.runs.cache import Watcher
from deadweight.pipeline.runs.run import run_sweep

RECORD = Path("runs") / "scale.jsonl"
OVER: dict[str, tuple[Any, ...]] = {
    "prune.ratio": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "prune.criterion": ("activation", "weight_l2", "random"),
}
POOL, ONE = "pool, 2 processes", "ray, 1 node of 2 CPUs"
STORED = RECIPE + '[store]\nurl = "file://{store}"\n'


def project(place: Path, epochs: int, store: str) -> Path:
    (place / "recipe").mkdir(parents=True, exist_ok=True)
    shutil.copy(Path(__file__).with_name("small.py"), place / "recipe")
    (place / "recipe" / "recipe.toml").write_text(STORED.format(seed=0, epochs=epochs, store=place / store))
    return place


def swept(place: Path, run: str, **changes: Any) -> tuple[dict[str, Any], float]:
    """Rows without times and files by stage, and the seconds."""
    settings = SweepSettings(over=OVER, score_drop=1.0, seconds=5.0, cpus=1, **changes)
    begun = time.monotonic()
    found = run_sweep(read_recipe(place / "recipe" / "recipe.toml"), settings, place / run, Watcher())
    seconds = time.monotonic() - begun
    rows = [{key: value for key, value in row.items() if key != "speedup"} for row in found.sweep["rows"]]
    return {"rows": rows, "files": files_of(place / run)}, seconds


def files_of(run: Path) -> dict[str, Any]:
    """The SHA-256 of the files of every finished stage but the timings, by the stage's key."""
    made = {}
    for done in sorted((run / "stages").glob("*/done.json")):
        if not done.parent.name.startswith("profile"):
            record = json.loads(done.read_text())
            named = {name: one["sha256"] for name, one in record["artifacts"].items()}
            of_networks = [[one["name"], one["files"]] for one in record["variants"]]
            made[done.parent.name] = [named, of_networks]
    return made


def when(happens: Callable[[], bool], do: Callable[[], None]) -> threading.Thread:
    """Does something once, as soon as it happens."""

    def wait() -> None:
        while not happens():
            time.sleep(0.1)
        do()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def measure(rounds: int, epochs: int, only: Sequence[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []

    def note(case: str, found: Mapping[str, Any], seconds: float, **more: Any) -> None:
        same = first is None or found == first
        rows.append(
            {"study": "executors", "case": case, "seconds": seconds, "same": same, "epochs": epochs, **more}
        )
        print(f"{case}: {seconds:.1f} s, same {same} {more}", flush=True)

    first: dict[str, Any] | None = None
    with tempfile.TemporaryDirectory() as folder, ExitStack() as held:
        place = Path(folder)
        for round_ in range(rounds):
            for name in [one for one in ("pool", "one") if one in only][:: 1 - round_ % 2 * 2]:
                at = project(place / f"round-{round_}", epochs, f"store-{name}")
                if name == "pool":
                    found, seconds = swept(at, "pool", processes=2)
                    note(POOL, found, seconds, round=round_)
                else:
                    with cluster({"num_cpus": 2}) as nodes:
                        found, seconds = swept(at, "one", executor="ray", address=nodes.address)
                    note(ONE, found, seconds, round=round_)
                first = first or found
        if "three" not in only:
            return rows
        at = project(place / "more", epochs, "store-three")
        three = held.enter_context(cluster(*[{"num_cpus": 1}] * 3))
        found, seconds = swept(at, "three", executor="ray", address=three.address)
        note("ray, 3 nodes of 1 CPU", found, seconds)
        project(at, epochs, "store-killed")
        killed = at / "store-killed" / "stages"
        when(lambda: len(list(killed.glob("finetune-*/*.tar"))) >= 8, lambda: three.kill())
        found, seconds = swept(at, "killed", executor="ray", address=three.address)
        alive = three.alive() - 1
        note("ray, 3 nodes, one killed", found, seconds, nodes_left=alive, **twice(at / "store-killed"))
        held.close()
        before = sorted(killed.rglob("*.tar"))
        with cluster(*[{"num_cpus": 1}] * 2) as nodes:
            found, seconds = swept(at, "again", executor="ray", address=nodes.address)
        ran = len(set(killed.rglob("*.tar")) - set(before))
        note("ray, a fresh cluster and the store alone", found, seconds, stages_run_again=ran)
    return rows


def twice(store: Path) -> dict[str, int]:
    """How many stages the store has, and how many of them were finished twice."""
    kept = [len(list(stage.glob("*.tar"))) for stage in (store / "stages").iterdir()]
    return {"stages": len(kept), "finished_twice": sum(count > 1 for count in kept)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--only", nargs="+", choices=("pool", "one", "three"), default=("pool", "one", "three")
    )
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if not chosen.table:
        append(RECORD, *measure(chosen.rounds, chosen.epochs, chosen.only))
    rows = [row for row in recorded(RECORD) if row["study"] == "executors"]
    for row in rows:
        print(f"| {row['case']} | {row['seconds']:.1f} | {'yes' if row['same'] else 'no'} |")
    pool, one = ([row["seconds"] for row in rows if row["case"] == case] for case in (POOL, ONE))
    if pairs := list(zip(pool, one, strict=False)):
        print("efficiency by round:", ", ".join(f"{mine / rays:.3f}" for mine, rays in pairs))


if __name__ == "__main__":
    main()
