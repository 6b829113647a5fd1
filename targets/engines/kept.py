"""Engines that this machine keeps: what was built once under the same conditions is not built again.

    ~/.cache/deadweight/engines/KEY/engine.plan      with its record and log

KEY is a hash of all on which an engine depends: model, settings, TensorRT's version, GPU, board and power
mode, since a kernel that is fast in one mode is slow in another. An engine that was not used for two weeks
is deleted. Only one whose hash is in the list of `own.py` counts: a build that was interrupted between
plan and record is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

from .. import __version__
from ..artifact import sha256_of
from ..errors import ArtifactError, DeadweightError
from ..machine import jetson
from ..machine.board_facts import device_facts
from ..memory_fit import Footprint
from ..onnx_file import model_sha256
from ..paths import CACHE, stored
from ..target import Target
from .build import build_engine, builder_here
from .build_settings import BuildSettings
from .machine import check_target
from .own import own_engine, remember_built
from .record import platform_facts, read_record


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
