"""Engines that this machine keeps: the only ones it loads without a signature, and none is built twice.

    ~/.cache/deadweight/engines/KEY/engine.plan      with its record and log

An engine is code. A bare file may come from anywhere, and a record beside it proves nothing, since both can
have the same origin. So the agent stores the hash of each engine it builds in its own folder, and opens a
bare engine only if its hash is there, from the bytes that were hashed.

KEY is a hash of all on which an engine depends: model, settings, TensorRT's version, GPU, board and power
mode, since a kernel that is fast in one mode is slow in another. An engine that was not used for two weeks
is deleted. One whose hash is not stored counts as not built: its build was interrupted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

from .. import __version__
from ..artifact import sha256_of
from ..errors import ArtifactError, DeadweightError, ModelError, RefusedError
from ..machine import jetson
from ..machine.board_facts import device_facts
from ..memory_fit import Footprint
from ..onnx_file import model_sha256
from ..paths import CACHE, cache, stored
from ..sealed import sealed_bytes
from ..target import Target
from .build import build_engine, builder_here
from .build_settings import BuildSettings
from .machine import check_target
from .record import platform_facts, read_record, record_path


def kept_engine(
    model: Path,
    *,
    settings: BuildSettings,
    target: Optional[Target] = None,
    need: Optional[Footprint] = None,
    folder: Path = CACHE,
    root: Path = Path("/"),
) -> Tuple[Path, Dict[str, Any], bool]:
    """The plan of a model, its record, and whether it was built before."""
    place = stored(folder, "engines")
    plan = place / _key(Path(model), settings, root) / "engine.plan"
    record = _whole(plan, folder)
    if record is None:
        try:
            built = build_engine(model, plan, settings=settings, target=target, need=need, root=root)
        except ArtifactError as error:
            raise ArtifactError(error.what, space_cure(folder)) from error
        remember_built(built.plan, folder)
        return plan, dict(built.record), False
    builder, version = builder_here(settings.flavour)
    check_target(builder, target, device_facts(), settings, version=version, root=root)
    os.utime(str(plan.parent))
    return plan, record, True


def space_cure(folder: Path) -> str:
    """The cure where a build has no space."""
    places = f"{stored(folder, 'engines')} {stored(folder, 'files')}"
    return f"Free some space (rm -r {places} removes copies), and run it again."


def _whole(plan: Path, folder: Path) -> Optional[Dict[str, Any]]:
    """The record of a whole plan that this machine built; None where there is none."""
    try:
        with own_engine(plan, folder):
            record = read_record(plan)
            return record if record and "types" in record else None  # by an older version: built again
    except DeadweightError:
        return None


def _key(model: Path, settings: BuildSettings, root: Path) -> str:
    mode = jetson.read_state(root, tools=True).power_mode if jetson.is_jetson(root) else None
    parts = {
        "deadweight": __version__,
        "model": model_sha256(model),
        "settings": asdict(settings),
        "files": [
            sha256_of(Path(each))
            for each in (*settings.plugins, settings.calibration_cache)
            if Path(each).is_file()
        ],
        "version": builder_here(settings.flavour)[1],
        "device": device_facts(),
        "platform": platform_facts(root),
        "power_mode": None if mode is None else [mode.id, mode.name],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


_NOTES = "built"


def remember_built(engine: Path, folder: Path = CACHE) -> None:
    """Stores the hash of an engine that this machine built."""
    handle = os.open(str(cache(folder) / _NOTES), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "w") as notes:
        notes.write(sha256_of(engine) + "\n")


@contextlib.contextmanager
def own_engine(engine: Path, folder: Path = CACHE) -> Iterator[Path]:
    """A link to the engine's checked bytes (see `sealed_bytes`), with a copy of its record beside it.

    Raises:
        ModelError: the file is missing.
        RefusedError: it was built elsewhere, or changed since.
    """
    try:
        data = Path(engine).read_bytes()
    except OSError as error:
        raise ModelError(f"There is no engine at {engine}.", "Check the path.") from error
    notes = cache(folder) / _NOTES
    if hashlib.sha256(data).hexdigest() not in (notes.read_text().split() if notes.is_file() else []):
        raise RefusedError(
            f"{Path(engine).name} was not built on this board, or changed since. An engine is code: its "
            "maker could run anything here.",
            "Send the ONNX file and build it here, or send the engine in a signed bundle.",
        )
    with sealed_bytes(Path(engine).name, data) as path, tempfile.TemporaryDirectory() as place:
        link = Path(place) / Path(engine).name
        link.symlink_to(path)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(str(record_path(engine)), str(record_path(link)))
        yield link
