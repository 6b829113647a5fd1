"""Options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

from typer import Option


class Place(str, Enum):
    """Where an engine's buffers are."""

    device = "device"
    mapped = "mapped"


class Wait(str, Enum):
    """How the host waits for the GPU."""

    spin = "spin"
    block = "block"


def run_by(runtime: str | None, *, cuda_graph: bool, buffers: Place, sync: Wait) -> str | None:
    """The runtime's name with the choices of how engines run, as in `+graph+block`."""
    chosen = ("+graph" if cuda_graph else "", "" if buffers is Place.device else "+mapped")
    return (runtime or "") + "".join(chosen) + ("" if sync is Wait.spin else "+block") or None


Settings = Annotated[
    list[str] | None, Option("--set", help="Replace a setting, e.g. prune.mean=0.1; repeatable.")
]
Out = Annotated[
    Path | None, Option("--out", help="The run's directory; default: runs/ and the recipe's name.")
]
TargetName = Annotated[str | None, Option("--target", help="A board's name, see `deadweight targets`.")]
JetPack = Annotated[
    str | None,
    Option("--jetpack", help="The board's JetPack (or DriveOS), e.g. 5.1.3; default: the target's."),
]
Inputs = Annotated[
    Path | None,
    Option(
        "--inputs",
        metavar="FILE.npz",
        help="The model's inputs: an NPZ file of arrays by their names, a full batch. Default: random.",
    ),
]
Data = Annotated[str | None, Option("--data", help="Directory of the example's data.")]
On = Annotated[str | None, Option("--on", metavar="USER@HOST", help="A board, by its ssh name; or local.")]
BoardRuntime = Annotated[
    str | None,
    Option("--runtime", help="In place of the best one that works: onnxruntime, tensorrt, trtexec."),
]
CudaGraph = Annotated[bool, Option("--cuda-graph", help="Run engines as a captured CUDA graph.")]
Buffers = Annotated[Place, Option("--buffers", help="The memory of an engine's inputs and outputs.")]
Sync = Annotated[Wait, Option("--sync", help="How the host waits for an engine.")]
Plugins = Annotated[
    list[Path] | None,
    Option("--plugin", help="A plugin library of the engines; with --on, its path there; repeatable."),
]
BoardPrecision = Annotated[
    str | None,
    Option("--precision", help="With --on: fp32, fp16 or best, for all engines alike. Default: fp16."),
]
Precision = Annotated[
    str,
    Option(
        "--precision", help="TensorRT: fp32, fp16 or best, of what is not quantized; see docs/engines.md."
    ),
]
