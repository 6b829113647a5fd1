"""What was accepted: a model, not a number. The file that a gate holds candidates against.

It names the model by its path and hash, says how to fetch it where it is not kept beside it, and carries the
protocol and the machine. A file of another schema, or a model whose bytes are others, is refused.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional, Tuple

from ..artifact import read_json, utc_now, write_json
from ..errors import ArtifactError, MeasurementError
from ..onnx_file import model_sha256
from ..progress import Counted
from ..timing.clock import time_together
from ..timing.inputs import inputs_mark
from ..timing.measurement import Measurement, Protocol

if TYPE_CHECKING:
    from ..runtimes.session import Arrays

SCHEMA = 1
_KINDS: Mapping[str, Tuple[type, ...]] = {
    **dict.fromkeys(("model", "model_sha256", "fetch", "commit", "recorded"), (str,)),
    "file_bytes": (int,),
    "machine": (dict,),
    "software": (dict,),
    "score": (int, float, type(None)),
    "calibration": (dict, type(None)),
}
"""What the fields of the file are, besides the protocol, which looks after itself."""


@dataclass(frozen=True)
class Baseline:
    """What was accepted: the model's file and hash, how to fetch it, how it was measured and on what."""

    model: str
    """Its path, relative to the baseline's own file."""
    model_sha256: str
    file_bytes: int
    fetch: str
    """A shell command that puts the model at `model`; empty where the file is kept beside the baseline."""
    protocol: Protocol
    machine: Mapping[str, Any]
    software: Mapping[str, Any]
    score: Optional[float] = None
    commit: str = ""
    recorded: str = ""
    calibration: Optional[Mapping[str, Any]] = None

    def to_json(self) -> Dict[str, Any]:
        """Plain values for JSON."""
        return {"schema": SCHEMA, **asdict(self)}


def record(
    model: Path,
    path: Path,
    *,
    protocol: Protocol,
    fetch: str = "",
    commit: str = "",
    score: Optional[float] = None,
    measured: Optional[Measurement] = None,
    inputs: Optional[Arrays] = None,
    progress: Optional[Counted] = None,
) -> Tuple[Baseline, Measurement]:
    """Accepts a model: times it once, to see that it can be, and writes the baseline file.

    `measured` is a timing that was taken elsewhere (a board) and stands for it. `inputs` are what the model
    is fed, and every candidate after it; without them random ones.

    Raises:
        ModelError, MeasurementError: it cannot be opened, run or timed; an older baseline stays as it was.
        ArtifactError: the file cannot be written.
    """
    model, path = Path(model), Path(path)
    if measured is None:
        short = replace(protocol, events=6)
        measured = time_together({model.name: model}, protocol=short, inputs=inputs, progress=progress)[
            model.name
        ]
    place = _relative(model, path.parent)
    baseline = Baseline(
        model=place,
        model_sha256=measured.model_sha256,
        file_bytes=measured.file_bytes,
        fetch=fetch,
        protocol=replace(protocol, inputs=measured.protocol.inputs, batch=measured.protocol.batch),
        machine=dict(measured.conditions["machine"]),
        software=dict(measured.conditions["software"]),
        score=score,
        commit=commit,
        recorded=utc_now(),
    )
    write_json(path, baseline.to_json())
    return baseline, measured


def read_baseline(path: Path) -> Baseline:
    """Reads what `record` wrote.

    Raises:
        ArtifactError: the file is missing, no baseline, or of another schema.
    """
    if not Path(path).is_file():
        raise ArtifactError(
            f"The baseline {path} does not exist.",
            f"Accept a model as the first: deadweight gate --record --model MODEL --baseline {path}.",
        )
    try:
        held = read_json(path)
    except ArtifactError as error:
        raise ArtifactError(
            error.what,
            "Put the baseline back as it was (from version control, say), or accept a model anew: "
            "deadweight gate --record --model MODEL --baseline FILE.",
        ) from error
    if held.get("schema") != SCHEMA:
        raise ArtifactError(
            f"The baseline {path} has the schema {held.get('schema')!r}; this version reads {SCHEMA}.",
            "Record it again: deadweight gate --record --model MODEL --baseline FILE.",
        )
    try:
        values = {key: value for key, value in held.items() if key != "schema"}
        for name, kinds in _KINDS.items():
            if name in values and not isinstance(values[name], kinds):
                raise TypeError(f"{name} is {values[name]!r}")
        return Baseline(**{**values, "protocol": Protocol.from_json(values["protocol"])})
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} is no baseline, or not a whole one: {error}.",
            "Record it again: deadweight gate --record --model MODEL --baseline FILE.",
        ) from error


def old_model(baseline: Baseline, path: Path) -> Optional[Path]:
    """The accepted model's file, fetched where it is not there; None where it cannot be had.

    Raises:
        ArtifactError: the fetch command fails, or what lies there is another file.
    """
    place = (Path(path).parent / baseline.model).resolve()
    if not place.is_file() and baseline.fetch:
        done = subprocess.run(
            baseline.fetch,
            shell=True,
            cwd=str(Path(path).resolve().parent),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        if done.returncode or not place.is_file():
            told = done.stdout.decode("utf-8", "replace").strip()[-300:]
            raise ArtifactError(
                f"The baseline's model could not be fetched: `{baseline.fetch}` ended with {done.returncode} "
                f"and {place} {'is there' if place.is_file() else 'is not there'}. {told}".rstrip(),
                "Run that command by hand, or record the baseline again with another --fetch.",
            )
    if not place.is_file():
        return None
    found = model_sha256(place)
    if found != baseline.model_sha256:
        raise ArtifactError(
            f"{place} is not the model that was accepted: its SHA-256 is {found[:12]}…, recorded was "
            f"{baseline.model_sha256[:12]}….",
            "Put the accepted model back, or record the new one: deadweight gate --record.",
        )
    return place


def _relative(model: Path, folder: Path) -> str:
    return os.path.relpath(str(model.resolve()), str(folder.resolve()))


def refuse_other_protocol(baseline: Baseline, *, threads: Optional[int], batch: Optional[int]) -> None:
    """A flag may not contradict how the baseline was recorded.

    Raises:
        MeasurementError: it does.
    """
    for name, wanted in (("threads", threads), ("batch", batch)):
        held = getattr(baseline.protocol, name)
        if wanted is not None and wanted != held:
            raise MeasurementError(
                f"The baseline was recorded with {name} {held}, and {name} {wanted} was asked for.",
                f"Leave out --{name}, or record the baseline again.",
            )


def refuse_other_inputs(baseline: Baseline, inputs: Optional[Arrays]) -> None:
    """A candidate is fed what the accepted model was fed.

    Raises:
        MeasurementError: other inputs were given, or none where some were, or some where none were.
    """
    was, now = baseline.protocol.inputs, inputs_mark(inputs)
    if was != now:
        raise MeasurementError(
            f"The baseline was recorded on inputs that were {was}, and now they are {now}.",
            "Give the same --inputs FILE.npz as with --record (random: none), or record it again.",
        )
