"""TensorRT, as `Runtime` values: engines built on the board, and how they run: graph, buffers, waiting.

Its profiler waits after every layer, which distorts times: layers are shown, not judged.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Optional, Tuple

from .runtime import Runtime

if TYPE_CHECKING:
    from .session import Session


_CHOICES = ("graph", "mapped", "block")
"""A captured CUDA graph; buffers in mapped memory, not in device memory; a host that sleeps, not spins."""


def _open(
    path: Path, *, threads: int = 1, flavour: str = "tensorrt", choices: Tuple[str, ...] = ()
) -> Session:
    from .trt import open_trt

    graph, mapped, block = (each in choices for each in _CHOICES)
    return open_trt(path, flavour=flavour, graph=graph, mapped=mapped, block=block)


def _version(flavour: str) -> Optional[str]:
    """By importing it: on a board its package may be there and not match the installed libraries."""
    from ..engines.log import import_tensorrt
    from ..errors import TargetError

    try:
        return str(import_tensorrt(flavour).__version__)
    except TargetError:
        return None


def _flavour(path: Path) -> str:
    """From the record beside the plan: TensorRT-RTX writes plans of the same suffixes."""
    from ..engines.record import read_record

    record = read_record(path)
    return RUNTIME.name if record is None else str(record["tensorrt"]["flavour"])


RUNTIME = Runtime(
    name="tensorrt",
    title="TensorRT",
    library="tensorrt",
    cure="It comes with JetPack: sudo apt install nvidia-jetpack. For a card of this machine: pip install "
    "tensorrt",
    open=_open,
    ask=partial(_version, "tensorrt"),
    suffixes=(".engine", ".plan"),
    processor="gpu",
    dialect="tensorrt",
    fp16=("flag", "file"),
    variant=_flavour,
    linted=True,
    fuses=True,
    sparse_kernels=True,
    tolerance=0.05,
)
_RTX = replace(
    RUNTIME,
    name="tensorrt_rtx",
    title="TensorRT-RTX",
    library="tensorrt_rtx",
    cure="Install it: pip install tensorrt-rtx",
    open=partial(_open, flavour="tensorrt_rtx"),
    ask=partial(_version, "tensorrt_rtx"),
)


def _variants(base: Runtime) -> Tuple[Runtime, ...]:
    """A runtime for each set of choices, as in `tensorrt+graph+block`: times under unequal ones differ."""
    sets = (
        tuple(name for name, on in zip(_CHOICES, chosen) if on)
        for chosen in product((False, True), repeat=len(_CHOICES))
    )
    return tuple(
        replace(
            base,
            name="+".join((base.name, *choices)),
            open=partial(_open, flavour=base.name, choices=choices),
        )
        for choices in sets
        if choices
    )


VARIANTS = (*_variants(RUNTIME), _RTX, *_variants(_RTX))
