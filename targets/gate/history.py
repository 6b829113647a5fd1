"""The gate's history: an append-only file with one line of JSON per measurement, by commit and machine.

A line is written at once and flushed to disk. A last line that a crash truncated is skipped on reading, and
is ended before the next one is appended; a broken line elsewhere is an error, since the file was edited.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

from ..artifact import json_of, utc_now
from ..errors import ArtifactError, reported
from ..timing.measurement import Measurement

SCHEMA = 1
_PROTOCOL = ("runtime", "precision", "threads", "batch", "inputs", "seed", "block_s", "settle_s")


def entry(
    measurement: Measurement,
    *,
    commit: str = "",
    verdict: Optional[Mapping[str, Any]] = None,
    memory_bytes: Optional[int] = None,
) -> Dict[str, Any]:
    """One line: model, machine and protocol, the median with its interval, and the verdict."""
    middle = measurement.latency_s(50)
    return {
        "schema": SCHEMA,
        "at": utc_now(),
        "commit": commit,
        "name": measurement.name,
        "model_sha256": measurement.model_sha256,
        "machine": measurement.conditions.get("machine", {}),
        "software": measurement.conditions.get("software", {}),
        "protocol": {name: getattr(measurement.protocol, name) for name in _PROTOCOL},
        "latency_s": {"p50": middle.value, "low": middle.low, "high": middle.high},
        "events": measurement.events,
        "marked": len({mark.event for mark in measurement.marks}),
        "file_bytes": measurement.file_bytes,
        "memory_bytes": memory_bytes,
        "verdict": dict(verdict) if verdict else None,
    }


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Appends one line to a history file, which is created if missing."""
    path = Path(path)
    with reported(ArtifactError, f"The history {path} cannot be written", "Choose another path."):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(line, sort_keys=True, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def read(path: Path) -> List[Dict[str, Any]]:
    """All lines, oldest first."""
    unreadable = f"The history {path} cannot be read"
    with reported(ArtifactError, unreadable, "Check the path.", OSError, UnicodeDecodeError):
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    entries: List[Dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json_of(line)
        except ValueError as error:
            if number == len(lines):
                break  # truncated while it was written
            rest = [later for later in lines[number:] if later.strip()]
            if rest and line.startswith("{") and not line.rstrip().endswith("}"):
                continue  # truncated by a crash, and ended by the next append
            raise ArtifactError(
                f"Line {number} of the history {path} is broken: {error}.", "Delete that line."
            ) from error
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            schema = value.get("schema") if isinstance(value, dict) else value
            raise ArtifactError(
                f"Line {number} of {path} has the schema {schema!r}; this version reads {SCHEMA}.",
                "Start a new history.",
            )
        entries.append(value)
    return entries
