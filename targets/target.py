"""The target: the facts about a board that pruning, building and judging need.

One TOML file per board, in `boards/`; users may give their own by path. Every fact has a source and a
certainty. A verdict uses only `certain`, which returns None for a fact of low certainty.
"""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Type, Union

from .errors import DeadweightError, TargetError, meant_and
from .runtimes.runtime import DEFAULT, Runtime, known_runtimes, own_runtime, runtime_named

BOARDS = Path(__file__).parent / "boards"
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

    step: int = 1
    hard: int = 1
    narrow_step: int = 0
    narrow_below: int = 0
    source: str = ""
    certainty: str = "high"

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
        return self.alignment.get(kind, Alignment())

    @property
    def here(self) -> Runtime:
        """The runtime of its ONNX files here: its own, or ONNX Runtime if its own builds engines."""
        return runtime_named(DEFAULT) if self.runtime.builds else self.runtime

    def to_json(self) -> Dict[str, Any]:
        """Plain values for JSON, for the agent on the board."""
        plain = asdict(replace(self, runtime=None))  # type: ignore[arg-type]  # functions are not JSON values
        return {**plain, "runtime": self.runtime.name, "precisions": list(self.precisions)}

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
        _keys(value, {"name", "title", "runtime", "precisions"}, {"alignment", "facts"}, where)
        runtime = _runtime(value["runtime"], f"{where}: runtime", folder)
        listed = value["precisions"]
        if not isinstance(listed, (list, tuple)) or not listed:
            raise TargetError(f"{where}: precisions is {listed!r}.", "Give a list, such as ['fp32', 'int8'].")
        precisions = tuple(_one_of(name, PRECISIONS, f"{where}: precisions") for name in listed)
        alignment = {
            _one_of(kind, KINDS, f"{where}: alignment"): _alignment(item, f"{where}: alignment.{kind}")
            for kind, item in _table(value.get("alignment", {}), f"{where}: alignment").items()
        }
        facts = {
            name: _fact(item, f"{where}: facts.{name}")
            for name, item in _table(value.get("facts", {}), f"{where}: facts").items()
        }
        return cls(str(value["name"]), str(value["title"]), runtime, precisions, alignment, facts)


def target_names() -> Tuple[str, ...]:
    """The names of the known boards."""
    return tuple(sorted(path.stem for path in BOARDS.glob("*.toml")))


def load_target(name_or_path: Union[str, Path]) -> Target:
    """A target by its name, or from the user's TOML file (a path ends in .toml).

    Raises:
        TargetError: no such name or file, or the file does not describe a target.
    """
    path, folder = Path(name_or_path), Path(name_or_path).parent
    if path.suffix != ".toml":
        path = BOARDS / f"{name_or_path}.toml"
        if str(name_or_path) not in target_names():
            more = f"Known: {', '.join(target_names())}. For another board, give the path of its .toml."
            raise TargetError(
                f"There is no target named '{name_or_path}'.",
                meant_and(str(name_or_path).lower(), target_names(), more, count=3, cutoff=0.3),
            )
    return Target.from_json(read_toml(path, TargetError), where=path.name, folder=folder)


def read_toml(path: Path, kind: Type[DeadweightError]) -> Dict[str, Any]:
    """The content of a TOML file.

    Raises:
        DeadweightError: of this kind: it cannot be read, or is not TOML.
    """
    # tomllib needs Python 3.11; tomli is the same library for older versions.
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        toml: Any = importlib.import_module(name)
    except ImportError as error:
        cure = "Install it: pip install tomli"
        raise kind(f"{path} is TOML, which this Python cannot read without {name}.", cure) from error
    try:
        return dict(toml.loads(path.read_text(encoding="utf-8-sig")))  # Windows' Notepad writes such a mark
    except (OSError, UnicodeDecodeError) as error:
        raise kind(f"{path} cannot be read: {error}.", "Check the path; it must be UTF-8.") from error
    except toml.TOMLDecodeError as error:
        raise kind(f"{path} cannot be read, since it is not TOML: {error}.", "Fix that line.") from error


def _alignment(value: Any, where: str) -> Alignment:
    table = _table(value, where)
    numbers = {"step", "hard", "narrow_step", "narrow_below"}
    _keys(table, {"step", "hard", "source", "certainty"}, numbers, where)
    for name in numbers & set(table):
        if not isinstance(table[name], int) or table[name] < (1 if name in ("step", "hard") else 0):
            raise TargetError(
                f"{where}.{name} is {table[name]!r}.", "Give a whole number of units, 1 or more."
            )
    alignment = Alignment(**{**table, "certainty": _one_of(table["certainty"], CERTAINTIES, where)})
    uneven = alignment.step % alignment.hard or alignment.narrow_step % alignment.hard
    if uneven or bool(alignment.narrow_step) != bool(alignment.narrow_below):
        raise TargetError(
            f"{where} has the steps {alignment.step} and {alignment.narrow_step} (below "
            f"{alignment.narrow_below} units), which are not multiples of {alignment.hard} (`hard`).",
            "Make both steps multiples of `hard`; give narrow_step and narrow_below together or not at all.",
        )
    return alignment


def _runtime(value: Any, where: str, folder: Optional[Path]) -> Runtime:
    if ":" in str(value):
        if folder is not None:
            return own_runtime(str(value), folder)
        raise TargetError(
            f"{where} is {value!r}, which is code, and data from elsewhere must not name code.",
            "Name it in the .toml file of your own board, and give the path of that file.",
        )
    return runtime_named(_one_of(value, tuple(one.name for one in known_runtimes()), where))


def _fact(value: Any, where: str) -> Fact:
    table = _table(value, where)
    _keys(table, {"value", "source", "certainty"}, set(), where)
    content = table["value"]
    plain = isinstance(content, (str, int, float, list)) and not isinstance(content, bool)
    if not plain or not str(table["source"]).strip():
        raise TargetError(
            f"{where} has the value {content!r} from '{table['source']}'.", "Give a value and its source."
        )
    return Fact(content, str(table["source"]), _one_of(table["certainty"], CERTAINTIES, where))


def _table(value: Any, where: str) -> Dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TargetError(
            f"{where} is {value!r}, not a table.", f"Write it as a table: [{where.split(': ')[-1]}]."
        )
    return dict(value)


def _keys(table: Mapping[str, Any], needed: set[str], allowed: set[str], where: str) -> None:
    missing, unknown = needed - set(table), set(table) - needed - allowed
    if missing or unknown:
        faults = [f"misses {', '.join(sorted(missing))}"] if missing else []
        faults += [f"does not know {', '.join(sorted(unknown))}"] if unknown else []
        raise TargetError(
            f"{where} {' and '.join(faults)}.", f"Its keys: {', '.join(sorted(needed | allowed))}."
        )


def _one_of(value: Any, known: Tuple[str, ...], where: str) -> str:
    if value not in known:
        raise TargetError(
            f"{where} is {value!r}.", meant_and(str(value), known, f"Known: {', '.join(known)}.", cutoff=0.3)
        )
    return str(value)
