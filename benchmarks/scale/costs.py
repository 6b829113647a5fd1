"""What a task, the store and the driver cost, and from these the estimate for 10,000 trials on 100 nodes.

    python benchmarks/scale/costs.py [--rows]

Measured here, on one machine: an empty Ray task, put and get of a stage of the digits sweep in a folder and
in S3 (moto's server), and what the driver takes to read a trial that another process finished.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from benchmarks.common.record import append, recorded
from benchmarks.scale.executors import project, swept
from deadweight.pipeline.runs.store import Store

RECORD = Path("runs") / "scale.jsonl"
TRIALS, NODES, CPUS = 10_000, 100, 16
_EMPTY = """
import ray, time
ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False, num_cpus=2)
@ray.remote
def empty(at): return at
ray.get([empty.remote(at) for at in range(100)])
begun = time.monotonic()
ray.get([empty.remote(at) for at in range(2000)])
print((time.monotonic() - begun) / 2000)
"""


def seconds_of(do: Callable[[], object], count: int) -> float:
    """The median seconds of a call."""
    found = []
    for _ in range(count):
        begun = time.monotonic()
        do()
        found.append(time.monotonic() - begun)
    return statistics.median(found)


def of_store(store: Store, stage: Path, folder: Path, count: int = 20) -> tuple[float, float]:
    """Seconds to put, and to get, a stage; each time under another key."""
    keys = [stage.rename(stage.with_name(f"{stage.name.partition('-')[0]}-x"))]
    for at in range(count):
        keys.append(Path(shutil.copytree(keys[0], folder / f"stage-{at}")))
    put = iter(keys[1:])
    put_s = seconds_of(lambda: store.put(next(put)), count)
    for one in keys[1:]:
        shutil.rmtree(one)
    get = iter(keys[1:])
    get_s = seconds_of(lambda: store.get(next(get)), count)
    keys[0].rename(stage)
    return put_s, get_s


def measure(place: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"study": "costs"}
    at = project(place / "project", 20, "store")
    first, whole_s = swept(at, "first")
    row["trials"] = len(first["rows"])
    row["trial_s"] = whole_s / row["trials"]
    _, read_s = swept(at, "other")  # all comes from the store, but the timing is kept too
    row["read_trial_s"] = read_s / row["trials"]
    _, kept_s = swept(at, "other")
    row["kept_trial_s"] = kept_s / row["trials"]
    row["stages_of_a_trial"] = len(first["files"]) / row["trials"]
    tars = list((at / "store" / "stages").rglob("*.tar"))
    row["bytes_of_a_trial"] = sum(tar.stat().st_size for tar in tars) / row["trials"]
    stage = next((at / "first" / "stages").glob("finetune-*"))
    row["file_put_s"], row["file_get_s"] = of_store(Store(f"file://{place}/put"), stage, place / "a")
    row["s3_put_s"], row["s3_get_s"] = _on_s3(stage, place / "b")
    ran = subprocess.run([sys.executable, "-c", _EMPTY], capture_output=True, text=True, check=True)
    row["ray_task_s"] = float(ran.stdout.strip().splitlines()[-1])
    return row


def _on_s3(stage: Path, folder: Path) -> tuple[float, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        import s3fs  # pyright: ignore[reportMissingImports]

        address = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        s3fs.S3FileSystem(endpoint_url=address).mkdir("bucket")
        return of_store(Store("s3://bucket/runs", {"endpoint_url": address}), stage, folder)
    finally:
        server.kill()
        server.wait()


def estimate(row: dict[str, Any], trial_s: float) -> list[str]:
    """Sentences for trials of so many seconds; all are estimates, from one machine's times."""
    at_once = NODES * CPUS
    work_s = TRIALS / at_once * (trial_s + row["stages_of_a_trial"] * row["s3_put_s"])
    driver_s = TRIALS * (row["ray_task_s"] + row["read_trial_s"])
    timing_s = TRIALS * 20.0 / 24
    objects, gigabytes = TRIALS * row["stages_of_a_trial"], TRIALS * row["bytes_of_a_trial"] / 1e9
    return [
        f"workers: {work_s / 3600:.2f} h",
        f"driver: {driver_s / 3600:.2f} h, of which tasks {TRIALS * row['ray_task_s'] / 60:.1f} min",
        f"store: {gigabytes:.1f} GB in {objects:.0f} objects",
        f"one board: {timing_s / 3600:.1f} h; ten: {timing_s / 36000:.2f} h",
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", action="store_true", help="print what is stored")
    torch.set_num_threads(1)
    if not parser.parse_args().rows:
        with tempfile.TemporaryDirectory() as folder:
            append(RECORD, measure(Path(folder)))
    row = [one for one in recorded(RECORD) if one["study"] == "costs"][-1]
    print(row)
    for trial_s in (row["trial_s"], 60.0, 3600.0):
        print(f"a trial of {trial_s:.1f} s:", *estimate(row, trial_s), sep="\n  ")


if __name__ == "__main__":
    main()
