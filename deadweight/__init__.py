"""deadweight: prunes a trained network, deploys it, and proves by measurement that it is faster.

    groups = deadweight.trace(model, example)
    plan = deadweight.choose(groups, scores, ratio=0.5)
    small = deadweight.apply(model, plan)
    deadweight.show(deadweight.compare("original.onnx", "small.onnx"))

The names below are public; everything else may change. Each is imported on first use, so
that a board, a CI job and a workstation each load only what they have.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .targets import __version__ as __version__

if TYPE_CHECKING:
    from . import criteria as criteria
    from .api import (
        advise,
        build,
        check,
        compare,
        gate,
        init,
        lint,
        memory,
        profile,
        prune,
        quantize,
        run,
        soak,
        sweep,
        table,
    )
    from .export.quantization.calibrate import calibrate
    from .export.quantization.to_qdq import to_qdq
    from .export.to_onnx import to_onnx
    from .pipeline.importance.activations import ActivationStatistics, collect
    from .pipeline.importance.criteria import Context
    from .pipeline.pruning.groups import choose, remove
    from .pipeline.pruning.plan import Plan, plan_of
    from .pipeline.pruning.saved import load_pruned, save_pruned
    from .pipeline.pruning.surgery import apply
    from .pipeline.pruning.trace import trace
    from .pipeline.pruning.verify import verify
    from .pipeline.recipe import Recipe, read_recipe
    from .pipeline.stage import Stage
    from .pipeline.work import Work
    from .pipeline.workload import Workload
    from .pipeline.workloads.in_python import workload
    from .pipeline.workloads.named import load_workload
    from .targets.artifact import Artifact
    from .targets.errors import DeadweightError
    from .targets.runtimes.open import open_session
    from .targets.runtimes.runtime import Runtime
    from .targets.runtimes.session import ProcessTimes, Session, TensorSpec
    from .targets.target import Target, load_target
    from .targets.timing.clock import time_together
    from .targets.timing.judge import Judgement, judge
    from .targets.timing.measurement import Measurement, Protocol
    from .targets.timing.memory import measure_memory
    from .terminal.show import show

_HOMES = {
    "export.quantization.calibrate": ("calibrate",),
    "terminal.show": ("show",),
    "api": (
        *("advise", "build", "check", "compare", "gate", "init", "lint", "memory"),
        *("profile", "prune", "quantize", "run", "soak", "sweep", "table"),
    ),
    "export.to_onnx": ("to_onnx",),
    "export.quantization.to_qdq": ("to_qdq",),
    "pipeline.pruning.groups": ("choose", "remove"),
    "pipeline.importance.criteria": ("Context",),
    "pipeline.recipe": ("Recipe", "read_recipe"),
    "pipeline.pruning.saved": ("load_pruned", "save_pruned"),
    "pipeline.stage": ("Stage",),
    "pipeline.importance.activations": ("ActivationStatistics", "collect"),
    "pipeline.pruning.plan": ("Plan", "plan_of"),
    "pipeline.pruning.surgery": ("apply",),
    "pipeline.pruning.trace": ("trace",),
    "pipeline.pruning.verify": ("verify",),
    "pipeline.work": ("Work",),
    "pipeline.workload": ("Workload",),
    "pipeline.workloads.in_python": ("workload",),
    "pipeline.workloads.named": ("load_workload",),
    "targets.artifact": ("Artifact",),
    "targets.timing.clock": ("time_together",),
    "targets.errors": ("DeadweightError",),
    "targets.timing.judge": ("Judgement", "judge"),
    "targets.timing.measurement": ("Measurement", "Protocol"),
    "targets.timing.memory": ("measure_memory",),
    "targets.runtimes.open": ("open_session",),
    "targets.runtimes.runtime": ("Runtime",),
    "targets.runtimes.session": ("ProcessTimes", "Session", "TensorSpec"),
    "targets.target": ("Target", "load_target"),
}

__all__ = ["ActivationStatistics", "Artifact", "Context", "DeadweightError", "Judgement", "Measurement"]
__all__ += ["Plan", "ProcessTimes", "Protocol", "Recipe", "Runtime", "Session", "Stage", "Target"]
__all__ += ["TensorSpec", "Work", "Workload", "advise", "apply", "build", "calibrate", "check", "choose"]
__all__ += ["collect", "compare", "gate", "init", "judge", "lint", "load_pruned", "load_target"]
__all__ += ["load_workload", "measure_memory", "memory"]
__all__ += ["open_session", "plan_of", "profile", "prune", "quantize", "read_recipe", "remove", "run"]
__all__ += ["save_pruned", "show", "soak", "sweep", "table", "time_together", "to_onnx", "to_qdq", "trace"]
__all__ += ["verify", "workload"]


def __getattr__(name: str) -> Any:
    if name == "criteria":
        return importlib.import_module(".criteria", __name__)
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{home}", __name__), name)
    raise AttributeError(f"module 'deadweight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "criteria"])
