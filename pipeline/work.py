"""What travels through the stages: the networks made so far, as files, loaded when asked.

A `Variant` is a row of the report: the original, the pruned, the tuned, the INT8 network, or a control.
A stage never changes a Work; it returns a new one. Everything in it is an `Artifact` with a hash, so that
a Work can be written down as JSON and its digest says whether a cached result still holds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..targets.artifact import Artifact, read_json, writing
from ..targets.errors import ModelError, RecipeError
from ..targets.target import Target
from .pruning.plan import Plan
from .pruning.saved import load_pruned, save_pruned
from .workload import Workload, example_batch, users_code

Progress = Callable[[int, int, str], None]  # done, total, what of


@dataclass(frozen=True)
class Variant:
    """One network of a run.

    `files` may hold "weights" (safetensors), "plan" (what was removed) and "onnx". `role` is "chain" for
    what the recipe makes and "control" for what it is compared with. `recovered` says whether a stage made it
    that recovers accuracy; None until that stage is in the log.
    """

    name: str
    files: Mapping[str, Artifact]
    role: str = "chain"
    recovered: bool | None = None

    def path(self, kind: str) -> Path:
        """The path of a file of this variant, after a look at its hash."""
        return self.files[kind].checked()


@dataclass(frozen=True)
class Facts:
    """What a stage declares about itself, see `stage.Stage`; None where its class does not say."""

    shrinks: bool | None = None
    recovers: bool | None = None
    trains: bool | None = None
    reads_onnx: bool | None = None
    writes_onnx: bool | None = None

    @classmethod
    def of(cls, stage: object) -> Facts:
        """The facts of a stage. One of our own that leaves a fact out declares False."""
        ours = type(stage).__module__.startswith(f"{__package__}.")
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(stage, name, False if ours else None) for name in names})

    @property
    def only_recovers(self) -> bool:
        """Whether the stage trains a network without changing its size."""
        return bool(self.recovers) and not self.shrinks


@dataclass(frozen=True)
class Done:
    """A stage that was run: its name in the recipe, its settings, its messages and its facts."""

    stage: str
    settings: Mapping[str, Any]
    words: tuple[str, ...] = ()
    facts: Facts = Facts()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Done:
        """The entry that `dataclasses.asdict` made plain."""
        return cls(value["stage"], value["settings"], tuple(value["words"]), Facts(**value["facts"]))


@dataclass(frozen=True)
class Work:
    """The state of a run between two stages.

    Attributes:
        directory: where the stage at work may put its files.
        variants: the networks so far, oldest first.
        artifacts: what belongs to no single network: statistics, scores, measurements.
        log: the stages run so far.
    """

    workload: Workload
    target: Target
    directory: Path
    seed: int = 0
    variants: tuple[Variant, ...] = ()
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    log: tuple[Done, ...] = ()
    progress: Progress = field(default=lambda done, total, what: None, compare=False)

    def variant(self, name: str) -> Variant:
        """The variant of that name.

        Raises:
            RecipeError: no stage made it.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        known = ", ".join(variant.name for variant in self.variants) or "none"
        raise RecipeError(
            f'There is no network "{name}" yet; there are: {known}.',
            "Put the stage that makes it before this one.",
        )

    def latest(self, kind: str = "weights") -> Variant:
        """The newest network of the chain that has a file of this kind.

        Raises:
            RecipeError: no stage made one.
        """
        for variant in reversed(self.variants):
            if variant.role == "chain" and kind in variant.files:
                return variant
        first = {"weights": '"train" or "load"', "onnx": '"export"'}.get(kind, f"the one that makes {kind}")
        raise RecipeError(f"No network with {kind} was made yet.", f"Put the stage {first} before this one.")

    def model(self, variant: Variant | None = None) -> nn.Module:
        """The module of a variant (default: the newest of the chain), in eval mode, on the CPU."""
        variant = variant or self.latest()
        weights = variant.path("weights")
        if "plan" in variant.files:
            variant.path("plan")
        return load_network(self.workload, weights.parent)

    def plan(self, variant: Variant) -> Plan | None:
        """What was removed from a variant; None if nothing was."""
        return Plan.from_json(read_json(variant.path("plan"))) if "plan" in variant.files else None

    def logged(self, stage: str, settings: Any, *words: str) -> Work:
        """This work after a stage: its name, the stage itself (a dataclass) and its messages."""
        done = Done(stage, dataclasses.asdict(settings), words, Facts.of(settings))
        return dataclasses.replace(self, log=(*self.log, done)).marked(done.facts)

    def marked(self, facts: Facts, *, before: Work | None = None) -> Work:
        """This work with `recovered` set for the networks that a stage of these facts has just made.

        Args:
            before: the work that the stage was given; without it, networks that are unmarked are meant.
        """

        def new(variant: Variant) -> bool:
            return variant.recovered is None if before is None else variant not in before.variants

        return dataclasses.replace(
            self,
            variants=tuple(
                dataclasses.replace(v, recovered=facts.only_recovers) if new(v) else v for v in self.variants
            ),
        )

    def training(self) -> dict[str, Any] | None:
        """The settings of the stage that trained the original; None where no stage of this run did."""
        return next((dict(done.settings) for done in self.log if done.facts.trains), None)

    def with_model(
        self,
        name: str,
        model: nn.Module,
        *,
        plan: Plan | None = None,
        role: str = "chain",
        beside: Mapping[str, Path] | None = None,
    ) -> Work:
        """This work with one more network; its files go to a folder of its name, `beside` are more."""
        place = self.directory / name
        place.mkdir(parents=True, exist_ok=True)
        if plan is not None:
            save_pruned(place, model, plan, example_batch(self.workload))
            names = {"plan": "plan.json", "weights": "model.safetensors"}
        else:
            write_tensors(place / "model.safetensors", model.state_dict())
            names = {"weights": "model.safetensors"}
        files = {kind: Artifact.of(place / file) for kind, file in names.items()}
        files |= {kind: Artifact.of(path) for kind, path in (beside or {}).items()}
        return self.with_variant(Variant(name, files, role))

    def with_variant(self, variant: Variant) -> Work:
        """This work with one more network, the newest; an older one of its name is dropped."""
        others = tuple(old for old in self.variants if old.name != variant.name)
        return dataclasses.replace(self, variants=(*others, variant))

    def with_file(self, name: str, kind: str, path: Path) -> Work:
        """This work with one more file of a network; the order stays."""
        added = tuple(
            dataclasses.replace(v, files={**v.files, kind: Artifact.of(path)}) if v.name == name else v
            for v in self.variants
        )
        return dataclasses.replace(self, variants=added)

    def with_artifact(self, name: str, path: Path) -> Work:
        """This work with a file that belongs to no single network."""
        return dataclasses.replace(self, artifacts={**self.artifacts, name: Artifact.of(path)})

    def digest(self) -> str:
        """A hash of all that is in it: equal digests, equal inputs for the next stage."""
        value = {
            "variants": [
                [v.name, v.role, {kind: a.sha256 for kind, a in sorted(v.files.items())}]
                for v in self.variants
            ],
            "artifacts": {name: artifact.sha256 for name, artifact in sorted(self.artifacts.items())},
            "log": [[done.stage, done.settings, dataclasses.asdict(done.facts)] for done in self.log],
        }
        return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def load_network(workload: Workload, folder: Path) -> nn.Module:
    """The network that `Work.with_model` saved in a folder, in eval mode, on the CPU.

    Raises:
        ModelError: build_model() returns another network than the one that was saved.
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
    try:
        model.load_state_dict(load_file(weights))
    except RuntimeError as error:
        raise ModelError(
            f"{weights} does not fit what {named} returns: {str(error).splitlines()[0]}",
            f"Let {named} return the same network every time.",
        ) from error
    return model.eval()


def student_class(name: str) -> Callable[[], nn.Module]:
    """A network of the user's own by its dotted path: a class, or a function, without arguments.

    Raises:
        RecipeError: there is no such thing.
    """
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


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a whole safetensors file, or nothing; equal tensors are equal bytes."""
    # Tied weights share memory, which the format refuses: each name gets its own copy.
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in sorted(tensors.items())}
    with writing(path) as beside:
        beside.write_bytes(save(plain, dict(metadata) if metadata else None))
