"""What checking a bundle costs, against `sha256sum` over the same files, side by side.

    python benchmarks/updates/verify_cost.py [--events 12]
    python benchmarks/updates/verify_cost.py --table

A bundle of one to 256 MB in four files of noise, really signed. By turns, in random order: `sha256sum` as a
process; `verify` as the agent calls it, in this process (signature, names, every byte); and for the smallest
the whole command as a process, as an installed package and as the zip that travels to a board. A Python that
does nothing shows what of that is Python's start. The clock is the project's own; a ratio is the time over
sha256sum's.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.common.grid import markdown
from benchmarks.common.record import Row, measure_missing
from benchmarks.common.timed_call import TimedCall
from deadweight.export.release.bundle import _sign
from deadweight.targets.artifact import sha256_of, write_json
from deadweight.targets.release.trust import verify
from deadweight.targets.remote.exchange import agent_bytes
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.judge import judge
from deadweight.targets.timing.measurement import Protocol

RECORD = Path("runs") / "verify_cost.jsonl"
MEGABYTES = (1, 16, 256)
CAP_S = 240.0
WAYS = ("verify", "command", "zip", "python")
WORDS = {
    "verify": "`verify`, in the process",
    "command": "the agent's command, installed",
    "zip": "the agent's command, from its zip",
    "python": "a Python that does nothing",
}


def make_bundle(place: Path, megabytes: int) -> None:
    """A signed bundle of noise, and the machine beside it that trusts its key."""
    files = {}
    folder = place / "bundle"
    folder.mkdir()
    for index in range(4):
        path = folder / f"part{index}.bin"
        path.write_bytes(os.urandom(megabytes * 250_000))
        files[path.name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    golden = {"inputs": "part0.bin", "outputs": "part1.bin", "tolerance": 0.01}
    board = {"compute_capability": None, "tensorrt": None}
    named = {
        "schema": 2,
        "name": "noise",
        "made_by": "a benchmark",
        "target": "x86-cpu",
        "model": "part2.bin",
    }
    dated = {"release": 1, "made_at": "2026-01-01T00:00:00+00:00", "expires": None}
    write_json(folder / "manifest.json", {**named, **dated, "board": board, "golden": golden, "files": files})
    key = place / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    _sign(folder / "manifest.json", key)
    signers = place / "root/etc/deadweight/allowed_signers"
    signers.parent.mkdir(parents=True)
    public = " ".join(key.with_suffix(".pub").read_text().split()[:2])
    signers.write_text(f'bench namespaces="deadweight-bundle" {public}\n')


def opened(path: Path, *, runtime: str, threads: int) -> TimedCall:
    """The way that a file is named after; the bundle lies beside it."""
    place, root = path.parent, path.parent / "root"
    bundle = place / "bundle"
    asked = ["--root", str(root), "verify", str(bundle)]
    commands = {
        "sha256sum": ["sha256sum", *sorted(map(str, bundle.glob("*.bin")))],
        "command": [sys.executable, "-m", "deadweight.targets.agent", *asked],
        "zip": [sys.executable, str(place / "agent.pyz"), *asked],
        "python": [sys.executable, "-c", "pass"],
    }
    if path.name == "verify":
        return TimedCall(partial(verify, bundle, root=root), "process")
    return TimedCall(partial(subprocess.run, commands[path.name], check=True, capture_output=True), "process")


def measure(megabytes: int, events: int) -> list[Row]:
    """All ways by turns; a row for each against sha256sum."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_bundle(place, megabytes)
        (place / "agent.pyz").write_bytes(agent_bytes())
        ways = WAYS if megabytes == MEGABYTES[0] else WAYS[:1]
        paths = {name: place / name for name in ("sha256sum", *ways)}
        for path in paths.values():
            path.write_text(path.name)
        timed = time_together(
            paths,
            protocol=Protocol(events=events, event_s=0.1, runtime="process", cap_s=CAP_S),
            opened=opened,
            progress=lambda done, total: print(f"{megabytes} MB: {done} of {total}", file=sys.stderr),
        )
    rows = []
    for way in ways:
        found = judge(timed[way], timed["sha256sum"])  # sha256sum as the candidate: how much faster it is
        rows.append(
            {
                "megabytes": megabytes,
                "way": way,
                "ratio": [found.ratio, found.low, found.high],
                "events": found.events,
                "seconds": {name: timed[name].latency_s(50).value for name in ("sha256sum", way)},
                "load": os.getloadavg()[0],
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                "python": platform.python_version(),
            }
        )
    return rows


def table(rows: Sequence[Row]) -> str:
    """A row a size and way."""
    lines = [
        [
            f"{row['megabytes']} MB",
            WORDS[row["way"]],
            f"{1e3 * row['seconds']['sha256sum']:.1f}",
            f"{1e3 * row['seconds'][row['way']]:.1f}",
            "{:.2f} ({:.2f} to {:.2f})".format(*row["ratio"]),
            str(row["events"]),
            f"{row['load']:.1f}",
        ]
        for row in rows
    ]
    head = ["bundle", "what", "sha256sum, ms", "it, ms", "times as long (95 %)", "events", "load"]
    return markdown(head, lines)


if __name__ == "__main__":
    measure_missing(__doc__, RECORD, MEGABYTES, "megabytes", measure, table)
