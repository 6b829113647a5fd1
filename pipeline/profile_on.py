"""The stage "profile" with `on`: the networks go to a board, which times them there by turns in one process.

A board with TensorRT builds an engine of each first. What comes back are the raw samples with the board's
conditions, so the verdict is made here as for any other measurement; a board that changed meanwhile, or is
emulated, gives none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from ..targets import measurement
from ..targets.artifact import write_json
from ..targets.engines.settings import BuildSettings
from ..targets.measurement import Protocol
from ..targets.on_board import time_engines_on, time_on
from ..targets.remote import connected
from .masks import load_masks
from .work import Work


def profile_on(
    on: str, work: Work, paths: Mapping[str, Path], protocol: Protocol, *, memory: bool
) -> tuple[Work, list[str]]:
    """Writes "measurements" and "memory" as the board measured them, and returns what there is to say.

    Raises:
        TargetError: the board cannot be reached, or the connection broke; what was copied is kept there.
        DeadweightError: what the board said.
    """
    with connected(on) as board:
        if work.target.runtime == "tensorrt":
            timed = time_engines_on(
                board,
                paths,
                protocol=protocol,
                settings=dataclasses.asdict(BuildSettings(sparse=knows_sparse(work))),
                target=work.target.to_json(),
                progress=work.progress,
            )
        else:
            timed = time_on(board, paths, protocol=protocol, memory=memory, progress=work.progress)
    measurement.save(timed.measurements, work.directory / "measurements.json")
    result = work.with_artifact("measurements", work.directory / "measurements.json")
    first = next(iter(timed.measurements.values()))
    if timed.memory:
        write_json(work.directory / "memory.json", {"conditions": first.conditions, **timed.memory})
        result = result.with_artifact("memory", work.directory / "memory.json")
    words = [f"Timed on {on}, {first.conditions['machine']['cpu']}: {first.evidence}."]
    return result, words + [f"The times are void: {reason}." for reason in timed.void]


def knows_sparse(work: Work) -> bool:
    """Whether a network is 2:4: then the builder may use the kernels for it, in all networks alike."""
    return any("masks" in v.files and load_masks(v.path("masks"))[1] == "2:4" for v in work.variants)
