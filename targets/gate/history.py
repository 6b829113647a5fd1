"""What was measured over time: one line of JSON for each measurement, by commit and machine, only added to.

A line is written in one piece and flushed to the disk. A last line that was cut off by a crash is left out
when the file is read, and is ended before the next one is added; a broken line anywhere else is an error,
since somebody edited the file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from ..artifact import utc_now
from ..errors import ArtifactError
from ..timing.measurement import Measurement

SCHEMA = 1


def entry(
    measurement: Measurement,
    *,
    commit: str = "",
    verdict: Optional[Mapping[str, Any]] = None,
    memory_bytes: Optional[int] = None,
) -> Dict[str, Any]:
    """One line: who was measured where and how, the median with its interval, and what came of it.

    `session_s` is the session's own figure for later sessions to be held against: the median over events of
    the median block, by the clock that a judgement would use.
    """
    clock = "wall" if measurement.cpu_ns is None else "cpu"
    middle = measurement.latency_s(50)
    return {
        "schema": SCHEMA,
        "at": utc_now(),
        "commit": commit,
        "name": measurement.name,
        "model_sha256": measurement.model_sha256,
        "machine": measurement.conditions.get("machine", {}),
        "software": measurement.conditions.get("software", {}),
        "protocol": protocol_key(measurement),
        "clock": clock,
        "session_s": session_s(measurement),
        "latency_s": {"p50": middle.value, "low": middle.low, "high": middle.high},
        "events": measurement.events,
        "marked": len({mark.event for mark in measurement.marks}),
        "file_bytes": measurement.file_bytes,
        "memory_bytes": memory_bytes,
        "verdict": dict(verdict) if verdict else None,
    }


def session_s(measurement: Measurement) -> float:
    """A session's own figure: the median over events of the median block, in seconds."""
    clock = "wall" if measurement.cpu_ns is None else "cpu"
    return float(np.median(np.median(measurement.block_s(clock), axis=1)))


def protocol_key(measurement: Measurement) -> Dict[str, Any]:
    """What of the protocol must be equal for two sessions' figures to be held against each other."""
    protocol = measurement.protocol
    return {
        name: getattr(protocol, name)
        for name in ("runtime", "threads", "batch", "inputs", "seed", "block_s", "settle_s")
    }


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds one line to a history, which is made where there is none.

    Raises:
        ArtifactError: the file cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line, sort_keys=True, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ArtifactError(
            f"The history {path} cannot be written to: {error.strerror or error}.", "Choose another place."
        ) from error


def read(path: Path) -> List[Dict[str, Any]]:
    """All lines, oldest first.

    Raises:
        ArtifactError: the file is missing, holds another schema, or a line that is not the last is broken.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"The history {path} cannot be read: {error}.", "Check the path.") from error
    found: List[Dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            held = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break  # cut off while it was written
            rest = [later for later in lines[number:] if later.strip()]
            if rest and line.startswith("{") and not line.rstrip().endswith("}"):
                continue  # cut off by a crash, and ended by the one that wrote next
            raise ArtifactError(
                f"Line {number} of the history {path} is broken: {error}.", "Take that line out."
            ) from error
        if not isinstance(held, dict) or held.get("schema") != SCHEMA:
            schema = held.get("schema") if isinstance(held, dict) else held
            raise ArtifactError(
                f"Line {number} of {path} has the schema {schema!r}; this version reads {SCHEMA}.",
                "Start a new history.",
            )
        found.append(held)
    return found
