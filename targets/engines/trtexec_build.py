"""The build of an engine by trtexec, with the usual record; facts that only Python can read are empty."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import Dict, Optional

from ..artifact import writing
from ..onnx_file import read_nodes
from ..target import Target
from .build_settings import BuildSettings
from .built import Built, made_of, written
from .dla import check_fallbacks
from .log import is_simulated, read_log
from .machine import device_facts, room_for
from .trtexec import build_flags, run_trtexec


def build_by_trtexec(
    program: Path,
    model: Path,
    plan: Path,
    *,
    settings: BuildSettings,
    target: Optional[Target],
    root: Path,
) -> Built:
    """As `build_engine`, by the program `trtexec`.

    Raises:
        ModelError, TargetError: as `build_engine`.
    """
    quantized = any(node.op_type == "QuantizeLinear" for node in read_nodes(model).nodes)
    free = room_for(model, target, root)
    limits: Dict[str, int] = {}
    if settings.workspace_bytes is not None or free is not None:
        limits["workspace_bytes"] = settings.workspace_bytes or (free or 0) // 2
    version, _ = run_trtexec(program, ["--help"], doing="say its version")
    started = perf_counter()
    with writing(plan) as beside:
        flags = build_flags(model, beside, settings, version=version, limits=limits, quantized=quantized)
        _, lines = run_trtexec(program, flags, doing=f"build {model.name}")
        findings = read_log(lines)
        check_fallbacks(findings, settings, model)
    record = {
        **made_of(model, plan, settings, target=target, root=root, simulated=is_simulated(lines)),
        "tensorrt": {
            "flavour": settings.flavour,
            "version": version,
            "strongly_typed": "--stronglyTyped" in flags or int(version.split(".")[0]) >= 11,
        },
        "by": str(program),
        "device": device_facts(None),
        "flags": [flag for flag in flags if not flag.startswith(("--onnx", "--saveEngine"))],
        "limits": limits,
        "fit": None,
        "profiles": {name: list(map(list, shapes)) for name, shapes in settings.shapes.items()},
        "refused_by_dla": [],
        "timing_cache": {"file": None, "used": False},
        "build_s": round(perf_counter() - started, 3),
        "findings": findings.to_json(),
    }
    return written(plan, record, findings, lines)
