"""The baseline file: the accepted model (not a number) with which the gate compares candidates.

It has the model's path and hash, the protocol and the machine. A file of another schema, or a model with
another hash, is refused. Nothing in it is run: a pull request may change it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple

from ..artifact import json_in, utc_now, write_json
from ..errors import ArtifactError, MeasurementError, TargetError, reported
from ..onnx_file import files_of, model_sha256
from ..plain import from_plain
from ..progress import Counted
from ..timing.clock import time_together
from ..timing.inputs import inputs_mark
from ..timing.measurement import CALM, Measurement, Protocol

if TYPE_CHECKING:
    from ..runtimes.session import Arrays

SCHEMA = 1
_FETCH_S = 600.0
"""Seconds that the command which fetches the accepted model may take."""


@dataclass(frozen=True)
class Baseline:
    """The accepted model: file, hash, the protocol, and the machine it was measured on."""

    model: str
    """Its path, relative to the baseline's own file."""
    model_sha256: str
    file_bytes: int
    protocol: Protocol
    machine: Mapping[str, Any]
    software: Mapping[str, Any]
    score: Optional[float] = None
    commit: str = ""
    recorded: str = ""
    calibration: Optional[Mapping[str, Any]] = None

    def to_json(self) -> Dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}


def record(
    model: Path,
    path: Path,
    *,
    protocol: Protocol,
    commit: str = "",
    score: Optional[float] = None,
    measured: Optional[Measurement] = None,
    inputs: Optional[Arrays] = None,
    progress: Optional[Counted] = None,
) -> Tuple[Baseline, Measurement]:
    """Accepts a model: times it once, to check that this works, and writes the baseline file.

    `measured` is a timing from elsewhere (a board), used in place of one here. The model and every later
    candidate get `inputs`; without them, random ones.

    Raises:
        ModelError, MeasurementError: it cannot be opened, run or timed; an older baseline is unchanged.
        ArtifactError: the file cannot be written.
    """
    model, path = Path(model), Path(path)
    if measured is None:
        short = replace(protocol, events=6)
        measured = time_together({model.name: model}, protocol=short, inputs=inputs, progress=progress)[
            model.name
        ]
    if measured.void:
        raise MeasurementError(
            f"{model.name} was not accepted, since its times are invalid: {'; '.join(measured.void)}.",
            f"{CALM[0].upper()}{CALM[1:]}.",
        )
    baseline = Baseline(
        model=os.path.relpath(str(model.resolve()), str(path.parent.resolve())),
        # Of the model, not of the engine that was built from it.
        model_sha256=model_sha256(model),
        file_bytes=sum(each.stat().st_size for each in files_of(model)),
        protocol=replace(
            protocol,
            inputs=measured.protocol.inputs,
            batch=measured.protocol.batch,
            runtime=measured.protocol.runtime,
            precision=measured.protocol.precision,
        ),
        machine=dict(measured.conditions["machine"]),
        software=dict(measured.conditions["software"]),
        score=score,
        commit=commit,
        recorded=utc_now(),
    )
    write_json(path, baseline.to_json())
    return baseline, measured


def read_baseline(path: Path) -> Baseline:
    """Reads what `record` wrote."""
    if not Path(path).is_file():
        raise ArtifactError(
            f"The baseline {path} does not exist.",
            f"Accept a first model: deadweight gate --record --model MODEL --baseline {path}.",
        )
    again = "Record it again: deadweight gate --record --model MODEL --baseline FILE."
    content = json_in(path, f"Restore the baseline from version control, for example. {again}")
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} is a {type(content).__name__}, not an object.", again)
    if content.get("schema") != SCHEMA:
        what = f"has the schema {content.get('schema')!r}; this version reads {SCHEMA}."
        raise ArtifactError(f"The baseline {path} {what}", again)
    # Until 0.2.0 the file also had a command, which was run.
    values = {key: value for key, value in content.items() if key not in ("schema", "fetch")}
    return from_plain(Baseline, values, f"The baseline {path}", error=ArtifactError, cure=again)


def old_model(baseline: Baseline, path: Path, *, fetch: str = "") -> Path:
    """The accepted model's file.

    Args:
        fetch: the caller's command that puts a missing one there; it has no shell, and ten minutes.

    Raises:
        ArtifactError: it is missing, or another file is there.
    """
    place = (Path(path).parent / baseline.model).resolve()
    if not place.is_file() and fetch:
        _fetched(fetch, place)
    if not place.is_file():
        raise ArtifactError(
            f"The accepted model {baseline.model} is not here: both models are timed side by side.",
            "Restore the file, or give the command that fetches it: --fetch CMD.",
        )
    sha256 = model_sha256(place)
    if sha256 != baseline.model_sha256:
        raise ArtifactError(
            f"{place} is not the accepted model: its SHA-256 is {sha256[:12]}…, the baseline has "
            f"{baseline.model_sha256[:12]}….",
            "Restore the accepted model, or record the new one: deadweight gate --record.",
        )
    return place


def _fetched(command: str, place: Path) -> None:
    cure = "Run that command by hand. It has no shell: put pipes and variables into a script."
    failed = f"`{command}`, which fetches the accepted model, failed"
    with reported(ArtifactError, failed, cure, OSError, ValueError, subprocess.TimeoutExpired):
        done = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_FETCH_S,
            check=False,
        )
    if done.returncode or not place.is_file():
        output = done.stdout.decode("utf-8", "replace").strip()[-300:]
        raise ArtifactError(
            f"The accepted model could not be fetched: `{command}` ended with {done.returncode} and {place} "
            f"{'exists' if place.is_file() else 'does not exist'}. {output}".rstrip(),
            cure,
        )


def refuse_other_runtime(baseline: Baseline, model: Path, protocol: Protocol) -> None:
    """Checks that a model's protocol has the runtime and the precision of the baseline."""
    was, now = (
        f"{one.runtime.partition('+')[0]} {one.precision}".strip() for one in (baseline.protocol, protocol)
    )
    if was != now:
        was += ", without a precision" if now.startswith(f"{was} ") else ""
        raise TargetError(
            f"{model} runs on {now}, but the baseline was recorded on {was}.",
            "Use a model for the same runtime, or record a baseline of this one: deadweight gate --record, "
            "with the same --on, --runtime and --precision.",
        )


def refuse_other_protocol(
    baseline: Baseline, *, threads: Optional[int], batch: Optional[int], precision: Optional[str] = None
) -> None:
    """Checks that the flags agree with the baseline's protocol."""
    for name, requested in (("threads", threads), ("batch", batch), ("precision", precision)):
        recorded = getattr(baseline.protocol, name)
        if requested is not None and requested != (recorded or requested):
            raise MeasurementError(
                f"The baseline was recorded with {name} {recorded}, but {name} {requested} was requested.",
                f"Omit --{name}, or record the baseline again.",
            )


def refuse_other_inputs(baseline: Baseline, inputs: Optional[Arrays]) -> None:
    """Checks that a candidate has the accepted model's inputs."""
    was, now = baseline.protocol.inputs, inputs_mark(inputs)
    if was != now:
        raise MeasurementError(
            f"The baseline was recorded with the inputs {was}, but now they are {now}.",
            "Use the same --inputs FILE.npz as with --record (random: none), or record it again.",
        )
