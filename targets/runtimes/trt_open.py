"""Opening a plan, after a check of its record against this machine, which TensorRT's errors do not name."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from ..engines.log import heard, import_tensorrt, is_simulated, reason
from ..engines.record import check_record, read_record, rebuild_command
from ..errors import ModelError
from ..machine.cuda import open_cuda
from ..machine.probe import evidence
from .trt import TrtSession
from .trt_memory import Watch


def open_trt(
    path: Path, *, flavour: str = "tensorrt", graph: bool = False, cuda: Optional[str] = None
) -> TrtSession:
    """Opens a plan on this machine's GPU, on request with a CUDA graph for timed runs.

    Raises:
        ModelError: the plan is missing, truncated, or was built for another machine or TensorRT.
        TargetError: no TensorRT, no CUDA binding, or no memory.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"There is no engine at {path}.", "Check the path, or build it: deadweight build.")
    record = read_record(path)
    trt = import_tensorrt(flavour)
    opened = open_cuda(cuda)
    capability = opened.compute_capability()
    if record is not None:
        check_record(record, path, flavour=flavour, version=trt.__version__, compute_capability=capability)
    rebuild = rebuild_command(path, record)
    watch = Watch(opened)
    with heard(trt) as (logger, lines):
        runtime = trt.Runtime(logger)
        if record is not None and record["settings"]["dla_core"] is not None:
            runtime.DLA_core = record["settings"]["dla_core"]
        engine = runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            raise ModelError(
                f"{flavour} {trt.__version__} cannot open {path.name} ({path.stat().st_size} bytes) on this "
                f"GPU of compute capability {capability}: {reason(lines)}.",
                f"A plan runs only on the TensorRT and the GPU it was built with. Build it here: {rebuild}",
            )
    watch.engine()
    simulated = is_simulated(lines) or (record is not None and record["evidence"] == "simulated")
    try:
        return TrtSession(
            engine,
            trt=trt,
            cuda=opened,
            plan=path,
            runtime=f"{flavour} {trt.__version__}{' with a CUDA graph' if graph else ''}",
            evidence="simulated" if simulated else evidence(),
            graph=graph,
            rebuild=rebuild,
            watch=watch,
        )
    finally:
        del engine, runtime
