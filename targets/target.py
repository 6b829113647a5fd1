"""The target: the facts about a board that pruning, building and judging need.

One TOML file per board, in `boards/`; users may give their own by path. Every fact has a source and a
certainty. A verdict uses only `certain`, which returns None for a fact of low certainty.

A target is a board and its software: `NAME@5.1.3` is the board with that JetPack. `board_file.py` reads it.
"""

from __future__ import annotations

import contextlib
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from .board_file import BOARDS, completed, described, read_board, titled
from .errors import TargetError, meant_and
from .plain import from_plain, plain
from .runtimes.runtime import DEFAULT, Runtime, known_runtimes, own_runtime, runtime_named

CERTAINTIES = ("high", "medium", "low")
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "fp4")
KINDS = ("conv", "depthwise", "linear", "matmul", "attention", "recurrent", "embedding")

Value = Union[str, int, float, List[str]]


@dataclass(frozen=True)
class Fact:
    """A value with its source and its certainty: `high`, `medium` or `low`."""

    value: Value
    source: str
    certainty: str


@dataclass(frozen=True)
class Alignment:
    """The widths at which an operator is fast. Round up to `step`: the units up to there cost no time.

    A width must be a multiple of `hard`, or the operator leaves its fast path. Layers narrower than
    `narrow_below` use `narrow_step` instead of `step`.
    """

    step: int
    hard: int
    source: str
    certainty: str
    narrow_step: int = 0
    narrow_below: int = 0

    def step_for(self, width: int) -> int:
        """The step for a layer that is now `width` wide."""
        return self.narrow_step if width < self.narrow_below else self.step

    def rounded(self, keep: int, *, width: int) -> int:
        """The width for keeping `keep` of `width` units: the next multiple of the step, at most `width`."""
        step = self.step_for(width)
        return min(width, max(step, math.ceil(keep / step) * step))


@dataclass(frozen=True)
class Target:
    """A board and its facts.

    Names of facts: memory_bytes, bandwidth_bytes_per_s, int8_ops_per_s, fp16_ops_per_s (dense, GPU alone),
    gpu_hz, streaming_multiprocessors, compute_capability, dla_cores, jetpack, l4t, tensorrt, cuda, python,
    power_modes. A board file may have more.
    """

    name: str
    title: str
    runtime: Runtime
    precisions: Tuple[str, ...]
    alignment: Mapping[str, Alignment] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def fact(self, name: str) -> Optional[Fact]:
        """A fact of any certainty, to be shown with its source; None if unknown."""
        return self.facts.get(name)

    def certain(self, name: str) -> Optional[Value]:
        """The value for use in a verdict; None if the fact is unknown or of low certainty."""
        fact = self.facts.get(name)
        return None if fact is None or fact.certainty == "low" else fact.value

    def align(self, kind: str) -> Alignment:
        """The alignment of an operator kind; any width is allowed for kinds without one."""
        return self.alignment.get(kind, Alignment(1, 1, "", "high"))

    @property
    def here(self) -> Runtime:
        """The runtime of its ONNX files here: its own, or ONNX Runtime if its own builds engines."""
        return runtime_named(DEFAULT) if self.runtime.builds else self.runtime

    @property
    def scored_here(self) -> Runtime:
        """As `here`, for outputs, not times: exact where its own runtime builds engines."""
        return runtime_named(f"{DEFAULT}+exact") if self.runtime.builds else self.runtime

    def to_json(self) -> Dict[str, Any]:
        """Plain values for JSON, for the agent on the board."""
        return dict(plain({**vars(self), "runtime": self.runtime.name}))

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], *, where: str = "the target", folder: Optional[Path] = None
    ) -> Target:
        """The inverse of `to_json`; also the schema of a board file.

        A user's own runtime is loaded only if `folder` is given, that of the user's TOML file: data from
        elsewhere must not name code.

        Raises:
            TargetError: a key is missing, unknown or has a value of the wrong type; it names the key.
        """
        if "runtime" in value:
            value = {**value, "runtime": _runtime(value["runtime"], f"{where}: runtime", folder)}
        cure = "docs/boards.md has the keys of a board's file."
        target = from_plain(cls, value, where, error=TargetError, cure=cure)
        if not target.precisions:
            raise TargetError(f"{where}: precisions is empty.", f"Give some of {', '.join(PRECISIONS)}.")
        for name in target.precisions:
            _one_of(name, PRECISIONS, f"{where}: precisions")
        for kind, alignment in target.alignment.items():
            _one_of(kind, KINDS, f"{where}: alignment")
            _check_alignment(alignment, f"{where}: alignment.{kind}")
        for name, fact in target.facts.items():
            _one_of(fact.certainty, CERTAINTIES, f"{where}: facts.{name}.certainty")
            if not fact.source.strip():
                what = f"{where}: facts.{name} has the value {fact.value!r} from '{fact.source}'."
                raise TargetError(what, "Give a value and its source.")
        return target


def target_names() -> Tuple[str, ...]:
    """The names of the known boards."""
    return tuple(sorted(path.stem for path in BOARDS.glob("[a-z]*.toml")))


def targets_of(compute_capability: str) -> Tuple[str, ...]:
    """The names of the known boards with this compute capability."""
    known = map(load_target, target_names())
    return tuple(each.name for each in known if each.certain("compute_capability") == compute_capability)


def load_target(name_or_path: Union[str, Path]) -> Target:
    """A target by its name, or from the user's TOML file (ending in .toml); `@` and a JetPack may follow.

    Raises:
        TargetError: no such name, file or JetPack, or the file does not describe a target.
    """
    found = re.fullmatch(r"(.+)@([0-9][0-9.]*)", str(name_or_path), re.DOTALL)
    name, jetpack = found.groups() if found else (str(name_or_path), None)
    path = Path(name)
    if path.suffix != ".toml":
        path = BOARDS / f"{name}.toml"
        if name not in target_names():
            more = f"Known: {', '.join(target_names())}. For another board, give the path of its .toml."
            raise TargetError(
                f"There is no target named '{name}'.",
                meant_and(name.lower(), target_names(), more, count=3, cutoff=0.3),
            )
    table = read_board(path, jetpack)
    return Target.from_json(table, where=path.name, folder=path.parent)


def target_on(name: str, facts: Mapping[str, Any]) -> Target:
    """The target with the software that a board really has, from its `board_facts`."""
    chosen = "@" in name
    asked = load_target(name)
    if not chosen:
        with contextlib.suppress(TargetError):  # of a release that no table has, only what was read is known
            asked = load_target(f"{name}@{facts['board']['jetpack']}")
    return with_facts(asked, facts, chosen=chosen)


def with_facts(asked: Target, facts: Mapping[str, Any], *, chosen: bool) -> Target:
    """As `target_on`, for a target that is loaded; `chosen`: the user asked for its JetPack."""
    board = facts["board"]
    wanted, here = asked.certain("compute_capability"), board["compute_capability"]
    if wanted is not None and here is not None and wanted != here:
        fitting = targets_of(here)
        raise TargetError(
            f"{asked.title} has compute capability {wanted}, but {board['model']} has {here}.",
            f"Give --target {' or '.join(fitting) or 'FILE.toml'}; see deadweight targets --from BOARD.",
        )
    if chosen:
        check_version(asked, board["tensorrt"], board["jetpack"], machine=str(board["model"]))
    read = {
        key: Fact(board[key], f"read from {board['model']}", "high")
        for key in ("jetpack", "l4t", "tensorrt", "cuda")
        if board[key] is not None
    }
    return replace(asked, facts={**asked.facts, **read})


def target_of(facts: Mapping[str, Any], *, name: str) -> Target:
    """The target that a board's own facts make."""
    return Target.from_json(completed(described(facts, name), Path(f"{name}.toml")), where=name)


def check_version(
    target: Target, tensorrt: Optional[str], jetpack: Optional[str], *, machine: str = ""
) -> None:
    """Checks that a machine, by default this one, has the target's TensorRT; unknown versions pass."""
    wanted, meant = target.certain("tensorrt"), target.certain("jetpack")
    if not isinstance(wanted, str) or tensorrt is None or wanted.split(".")[:2] == tensorrt.split(".")[:2]:
        return
    means = f"{wanted} ({titled(str(meant))})" if meant else wanted
    has = f"{tensorrt} ({titled(jetpack)})" if jetpack else tensorrt
    release = (jetpack or "").split()[-1:]
    board = "BOARD" if machine else "local"
    cure = f"Omit --target, or write a target of that machine: deadweight targets --from {board}."
    if release:
        cure = f'Give --jetpack {release[0]}; in a recipe: jetpack = "{release[0]}".'
    here = machine or "this machine"
    raise TargetError(f"{target.title} means TensorRT {means}, but {here} has {has}.", cure)


def _check_alignment(alignment: Alignment, where: str) -> None:
    _one_of(alignment.certainty, CERTAINTIES, f"{where}.certainty")
    for name, least in (("step", 1), ("hard", 1), ("narrow_step", 0), ("narrow_below", 0)):
        units = getattr(alignment, name)
        if units < least:
            raise TargetError(f"{where}.{name} is {units}.", f"Give a number of units, {least} or more.")
    uneven = alignment.step % alignment.hard or alignment.narrow_step % alignment.hard
    if uneven or bool(alignment.narrow_step) != bool(alignment.narrow_below):
        raise TargetError(
            f"{where} has the steps {alignment.step} and {alignment.narrow_step} (below "
            f"{alignment.narrow_below} units), which are not multiples of {alignment.hard} (`hard`).",
            "Make both steps multiples of `hard`; give narrow_step and narrow_below together or not at all.",
        )


def _runtime(value: Any, where: str, folder: Optional[Path]) -> Runtime:
    if ":" in str(value):
        if folder is not None:
            return own_runtime(str(value), folder)
        raise TargetError(
            f"{where} is {value!r}, which is code, and data from elsewhere must not name code.",
            "Name it in the .toml file of your own board, and give the path of that file.",
        )
    return runtime_named(_one_of(value, tuple(one.name for one in known_runtimes()), where))


def _one_of(value: Any, known: Tuple[str, ...], where: str) -> str:
    if value not in known:
        raise TargetError(
            f"{where} is {value!r}.", meant_and(str(value), known, f"Known: {', '.join(known)}.", cutoff=0.3)
        )
    return str(value)
