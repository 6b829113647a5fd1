"""The state of a run between two stages: the networks made so far, as files that are loaded on demand.

A `Variant` is a row of the report: the original, the pruned, the tuned, the INT8 network, or a control.
A stage never changes a Work; it returns a new one. Everything in it is an `Artifact` with a hash, so a Work
can be stored as JSON and its digest says whether a cached result is still valid.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..targets.artifact import Artifact, write_json
from ..targets.errors import RecipeError
from ..targets.progress import Progress

if TYPE_CHECKING:
    from torch import nn

    from ..targets.target import Target
    from .pruning.plan import Plan
    from .training.networks import NetworkFiles
    from .workload import Workload


@dataclass(frozen=True)
class Variant:
    """One network of a run.

    `files` may hold "weights" (safetensors), "plan" (what was removed) and "onnx". `role` is "chain" for
    a network that the recipe makes and "control" for one that it is compared with. `recovered` says whether
    the stage that made it recovers accuracy; None until that stage is in the log.
    """

    name: str
    files: Mapping[str, Artifact]
    role: str = "chain"
    recovered: bool | None = None

    def path(self, kind: str) -> Path:
        """Path of this variant's file; raises if its SHA-256 has changed."""
        return self.files[kind].checked()


@dataclass(frozen=True)
class Facts:
    """What a stage declares about itself, see `stage.Stage`; None where its class does not declare it."""

    shrinks: bool | None = None
    recovers: bool | None = None
    trains: bool | None = None
    reads_onnx: bool | None = None
    writes_onnx: bool | None = None
    long: bool | None = None

    @classmethod
    def of(cls, stage: object) -> Facts:
        """The facts of a stage. A built-in stage that leaves a fact out declares False."""
        ours = type(stage).__module__.startswith(f"{__package__}.")
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(stage, name, False if ours else None) for name in names})


@dataclass(frozen=True)
class Done:
    """The log entry of a stage that ran: its name in the recipe, settings, messages and facts."""

    stage: str
    settings: Mapping[str, Any]
    words: tuple[str, ...] = ()
    facts: Facts = Facts()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Done:
        return cls(value["stage"], value["settings"], tuple(value["words"]), Facts(**value["facts"]))


@dataclass(frozen=True)
class Work:
    """The state of a run between two stages.

    Attributes:
        directory: where the running stage may put its files.
        folder: the recipe's, to which its paths are relative.
        variants: the networks so far, oldest first.
        artifacts: files that belong to no single network: statistics, scores, measurements.
        log: the stages run so far.
        networks: saves and loads the networks.
    """

    workload: Workload
    target: Target
    directory: Path
    seed: int = 0
    variants: tuple[Variant, ...] = ()
    artifacts: Mapping[str, Artifact] = field(default_factory=dict)
    log: tuple[Done, ...] = ()
    progress: Progress = field(default=lambda done, total, what: None, compare=False)
    folder: Path = field(default=Path(), compare=False)
    networks: NetworkFiles = field(kw_only=True, repr=False, compare=False)

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
        first = {"weights": '"train" or "load"', "onnx": '"export"'}.get(kind, f"that makes {kind}")
        raise RecipeError(f"No network with {kind} was made yet.", f"Put the stage {first} before this one.")

    def model(self, variant: Variant | None = None) -> nn.Module:
        """The module of a variant (default: the newest of the chain), in eval mode, on the CPU."""
        variant = variant or self.latest()
        weights = variant.path("weights")
        if "plan" in variant.files:
            variant.path("plan")
        return self.networks.load(weights.parent, self.workload)

    def plan(self, variant: Variant) -> Plan | None:
        return self.networks.plan(variant.path("plan")) if "plan" in variant.files else None

    def logged(self, stage: str, settings: Any, *words: str) -> Work:
        """This work after a stage: its name, the stage itself (a dataclass) and its messages."""
        done = Done(stage, dataclasses.asdict(settings), words, Facts.of(settings))
        return dataclasses.replace(self, log=(*self.log, done)).marked(done.facts)

    def marked(self, facts: Facts, *, before: Work | None = None) -> Work:
        """This work with `recovered` set for the networks that a stage of these facts has just made.

        Args:
            before: the stage's input; without it, every network that is not marked yet is marked.
        """

        recovers = bool(facts.recovers) and not facts.shrinks  # it trains, and the size stays

        def new(variant: Variant) -> bool:
            return variant.recovered is None if before is None else variant not in before.variants

        return dataclasses.replace(
            self,
            variants=tuple(
                dataclasses.replace(v, recovered=recovers) if new(v) else v for v in self.variants
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
        """This work with one more network, saved in a folder of its name; `beside` names further files."""
        paths = {**self.networks.save(self.directory / name, model, self.workload, plan), **(beside or {})}
        return self.with_variant(
            Variant(name, {kind: Artifact.of(path) for kind, path in paths.items()}, role)
        )

    def with_variant(self, variant: Variant) -> Work:
        """This work with one more network as the newest; it replaces one of the same name."""
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
        """This work with one more file that belongs to no single network."""
        return dataclasses.replace(self, artifacts={**self.artifacts, name: Artifact.of(path)})

    def with_json(self, name: str, content: Any) -> Work:
        """This work with one more artifact, the file `name`.json with this content."""
        write_json(self.directory / f"{name}.json", content)
        return self.with_artifact(name, self.directory / f"{name}.json")

    def quiet(self, directory: Path) -> Work:
        """This work for a stage inside another, which speaks for it: its own folder, no progress."""
        return dataclasses.replace(self, directory=directory, progress=lambda done, total, what: None)

    def record(self, directory: Path) -> dict[str, Any]:
        """The content as JSON values, with the paths of files relative to a directory."""

        def entries(files: Mapping[str, Artifact]) -> dict[str, dict[str, str]]:
            paths = {kind: os.path.relpath(one.path, directory) for kind, one in files.items()}
            return {kind: {"path": paths[kind], "sha256": one.sha256} for kind, one in files.items()}

        own = ("name", "role", "recovered")
        return {
            "variants": [
                {**{name: getattr(v, name) for name in own}, "files": entries(v.files)} for v in self.variants
            ],
            "artifacts": entries(self.artifacts),
            "log": [dataclasses.asdict(done) for done in self.log],
        }

    def restored(self, record: Mapping[str, Any], directory: Path) -> Work:
        """This work with the content that `record` wrote.

        Raises:
            ArtifactError: a file is missing or damaged.
        """

        def files(held: Mapping[str, Mapping[str, str]]) -> dict[str, Artifact]:
            paths = {kind: Path(os.path.normpath(directory / one["path"])) for kind, one in held.items()}
            read = {kind: Artifact(paths[kind], one["sha256"]) for kind, one in held.items()}
            for artifact in read.values():
                artifact.checked()
            return read

        made = [Variant(v["name"], files(v["files"]), v["role"], v["recovered"]) for v in record["variants"]]
        artifacts, log = files(record["artifacts"]), tuple(map(Done.from_json, record["log"]))
        return dataclasses.replace(self, variants=tuple(made), artifacts=artifacts, log=log)

    def digest(self) -> str:
        """A hash of the whole content: equal digests mean equal inputs for the next stage."""
        value = {
            "variants": [
                [v.name, v.role, {kind: a.sha256 for kind, a in sorted(v.files.items())}]
                for v in self.variants
            ],
            "artifacts": {name: artifact.sha256 for name, artifact in sorted(self.artifacts.items())},
            "log": [[done.stage, done.settings, dataclasses.asdict(done.facts)] for done in self.log],
        }
        return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
