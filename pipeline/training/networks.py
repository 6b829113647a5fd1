"""Saves and loads networks: plain weights, or the weights of a pruned network with its plan."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ...targets.artifact import read_json
from ...targets.errors import RecipeError, users_code
from ..pruning import rebuild, surgery
from ..pruning.groups import Groups
from ..pruning.plan import Plan, plan_of
from ..pruning.saved import PLAN, WEIGHTS, load_pruned, save_pruned
from ..pruning.trace import trace
from ..work import Variant
from ..workload import Workload, example_batch
from .checkpoint import fill, tensors_in, write_tensors


class NetworkFiles:
    """The networks of a run; a Work holds it, so that stages are not keyed by the code that rebuilds them."""

    def __init__(self) -> None:
        self._last: Groups | None = None

    def save(self, folder: Path, model: nn.Module, workload: Workload, plan: Plan | None) -> dict[str, Path]:
        """Writes a network into a folder; returns the files by their kind."""
        folder.mkdir(parents=True, exist_ok=True)
        plan = plan_of(model) or plan
        if plan is None:
            write_tensors(folder / WEIGHTS, model.state_dict())
            return {"weights": folder / WEIGHTS}
        save_pruned(folder, model, plan, example_batch(workload))
        return {"plan": folder / PLAN, "weights": folder / WEIGHTS}

    def load(self, folder: Path, workload: Workload) -> nn.Module:
        """See `load_network`."""
        return load_network(workload, folder)

    def groups(self, model: nn.Module, workload: Workload) -> Groups:
        """The groups of a network, which follow from those of the last one where it was cut from that."""
        self._last = trace(model, example_batch(workload) if self._last is None else self._last)
        return self._last

    def plan(self, path: Path) -> Plan:
        return Plan.from_json(read_json(path))

    def code(self, variants: Iterable[Variant]) -> list[Path]:
        """The source files that rebuild these networks; none for plain weights."""
        found = []
        for variant in variants:
            if "plan" in variant.files:
                plan = self.plan(variant.path("plan"))
                graph = any(step.form == "graph" for step in (*plan.earlier, plan))
                found.append(Path(str((surgery if graph else rebuild).__file__)))
            if "student" in variant.files:
                name = read_json(variant.path("student"))["class"]
                found.append(Path(inspect.getfile(student_class(name))))
        return found


def load_network(workload: Workload, folder: Path) -> nn.Module:
    """The network that was saved in a folder, in eval mode, on the CPU.

    Raises:
        ModelError: build_model() returns a different network from the one that was saved.
    """
    build, named = workload.build_model, "build_model()"
    if (folder / "student.json").exists():
        named = read_json(folder / "student.json")["class"]
        build = student_class(named)
    if (folder / "plan.json").exists():
        return load_pruned(build, folder).eval()
    weights = folder / "model.safetensors"
    with torch.random.fork_rng(devices=[]):
        model = build()
    return fill(model, tensors_in(weights), weights, f"Let {named} return the same network every time.")


def student_class(name: str) -> Callable[[], nn.Module]:
    """The user's own network (a class or function) by its dotted path; a RecipeError if there is none."""
    place, _, attribute = name.replace(":", ".").rpartition(".")
    with users_code(f'the student "{name}" was imported'):
        found = getattr(importlib.import_module(place), attribute, None) if place else None
    if not callable(found):
        raise RecipeError(
            f'There is no student "{name}".',
            "Name a class without arguments by its dotted path, e.g. students.Small for one in students.py "
            "beside the recipe.",
        )
    return cast("Callable[[], nn.Module]", found)
