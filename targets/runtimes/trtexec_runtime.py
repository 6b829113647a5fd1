"""trtexec, as a `Runtime`: TensorRT's program, where Python cannot use TensorRT itself.

It opens, builds and times the same files. Its times are its own: see docs/engines.md.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from .trt_runtime import RUNTIME as TENSORRT

if TYPE_CHECKING:
    from ..timing.measurement import Protocol
    from .session import Arrays, ProcessTimes, Session


def _open(path: Path, *, threads: int = 1) -> Session:
    from .trtexec_session import open_trtexec

    return open_trtexec(path)


def _time(
    path: Path, *, protocol: Protocol, inputs: Optional[Arrays] = None, graph: bool = False
) -> ProcessTimes:
    from .trtexec_session import open_trtexec

    return open_trtexec(path).timed(protocol, inputs, graph=graph)


def _version() -> Optional[str]:
    from ..engines.trtexec import version_of
    from ..errors import DeadweightError
    from ..machine.board_facts import find_trtexec

    program = find_trtexec()
    try:
        return None if program is None else version_of(program)
    except DeadweightError:
        return ""  # it is there, and opening an engine says why it does not start


RUNTIME = replace(
    TENSORRT,
    name="trtexec",
    title="trtexec",
    library="",
    cure="It comes with TensorRT's samples: sudo apt install libnvinfer-bin",
    open=_open,
    time_process=partial(_time, graph=False),
    ask=_version,
    instead_of="tensorrt",
    variant=None,
)
VARIANTS = (
    replace(
        RUNTIME, name="trtexec+graph", time_process=partial(_time, graph=True), instead_of="tensorrt+graph"
    ),
)
