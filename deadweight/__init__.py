"""Remove the neurons that are dead weight, deploy what is left, and prove that it is faster.

    groups = deadweight.trace(model, example)
    plan = deadweight.choose(groups, scores, ratio=0.5)
    small = deadweight.apply(model, plan)

The names below are public; everything else may change. Each is imported when it is first asked for, so
that a board, a CI job and a workstation each load only what they have.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .targets import __version__ as __version__

if TYPE_CHECKING:
    from .export.calibrate import calibrate
    from .export.lint.run import lint
    from .export.to_onnx import to_onnx
    from .export.to_qdq import to_qdq
    from .pipeline.importance import Context
    from .pipeline.pruning.groups import choose, remove
    from .pipeline.pruning.plan import Plan, plan_of
    from .pipeline.pruning.saved import load_pruned, save_pruned
    from .pipeline.pruning.surgery import apply
    from .pipeline.pruning.trace import trace
    from .pipeline.pruning.verify import verify
    from .pipeline.recipe import Recipe, read_recipe
    from .pipeline.stage import Stage
    from .pipeline.statistics import ActivationStatistics, collect
    from .pipeline.work import Work
    from .pipeline.workload import Workload
    from .targets.artifact import Artifact
    from .targets.clock import time_together
    from .targets.errors import DeadweightError
    from .targets.judge import Judgement, judge
    from .targets.measurement import Measurement, Protocol
    from .targets.memory import measure_memory
    from .targets.session import Session, open_session
    from .targets.target import Target, load_target

_HOMES = {
    "export.calibrate": ("calibrate",),
    "export.lint.run": ("lint",),
    "export.to_onnx": ("to_onnx",),
    "export.to_qdq": ("to_qdq",),
    "pipeline.pruning.groups": ("choose", "remove"),
    "pipeline.importance": ("Context",),
    "pipeline.recipe": ("Recipe", "read_recipe"),
    "pipeline.pruning.saved": ("load_pruned", "save_pruned"),
    "pipeline.stage": ("Stage",),
    "pipeline.statistics": ("ActivationStatistics", "collect"),
    "pipeline.pruning.plan": ("Plan", "plan_of"),
    "pipeline.pruning.surgery": ("apply",),
    "pipeline.pruning.trace": ("trace",),
    "pipeline.pruning.verify": ("verify",),
    "pipeline.work": ("Work",),
    "pipeline.workload": ("Workload",),
    "targets.artifact": ("Artifact",),
    "targets.clock": ("time_together",),
    "targets.errors": ("DeadweightError",),
    "targets.judge": ("Judgement", "judge"),
    "targets.measurement": ("Measurement", "Protocol"),
    "targets.memory": ("measure_memory",),
    "targets.session": ("Session", "open_session"),
    "targets.target": ("Target", "load_target"),
}

__all__ = [
    "ActivationStatistics",
    "Artifact",
    "Context",
    "DeadweightError",
    "Judgement",
    "Measurement",
    "Plan",
    "Protocol",
    "Recipe",
    "Session",
    "Stage",
    "Target",
    "Work",
    "Workload",
    "apply",
    "calibrate",
    "choose",
    "collect",
    "judge",
    "lint",
    "load_pruned",
    "load_target",
    "measure_memory",
    "open_session",
    "plan_of",
    "read_recipe",
    "remove",
    "save_pruned",
    "time_together",
    "to_onnx",
    "to_qdq",
    "trace",
    "verify",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f".{home}", __name__), name)
    raise AttributeError(f"module 'deadweight' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
