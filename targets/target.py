"""The target: the facts about a board that pruning, building and judging need.

One TOML file per board, in `boards/`; users may give their own by path. Every fact has a source and a
certainty. A verdict uses only `certain`, which returns None for a fact of low certainty.

A target is a board and its software: `NAME@5.1.3` is the board with that JetPack. In a file, `like` names
another board or a family (`_NAME.toml`), whose values and facts it takes; `jetpacks` are the releases that
exist for it, `jetpack` is the default one; `[older."6.2"]` has the facts that differ before a release;
`read_here` adds the facts of this machine's card.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import re
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Type, Union

from .errors import DeadweightError, TargetError, meant_and
from .machine.board_facts import card_facts
from .machine.nvidia_tools import JETPACKS
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
    table = _with_software(_with_likes(path, ()), jetpack, path.name)
    if table.pop("read_here", False):
        here = {key: asdict(Fact(*fact)) for key, fact in card_facts().items()}
        table["facts"] = {**here, **table.get("facts", {})}
    return Target.from_json(table, where=path.name, folder=path.parent)


def target_on(name: str, facts: Mapping[str, Any]) -> Target:
    """The target with the software that a board really has, from its `board_facts`.

    Raises:
        TargetError: it is another board, or another JetPack was asked for.
    """
    board, asked = facts["board"], load_target(name)
    if "@" not in name:
        with contextlib.suppress(TargetError):  # of a release that no table has, only what was read is known
            asked = load_target(f"{name}@{board['jetpack']}")
    wanted, here = asked.certain("compute_capability"), board["compute_capability"]
    if wanted is not None and here is not None and wanted != here:
        fitting = targets_of(here)
        raise TargetError(
            f"{asked.title} has compute capability {wanted}, but {board['model']} has {here}.",
            f"Give --target {' or '.join(fitting) or 'FILE.toml'}; see deadweight targets --from BOARD.",
        )
    if "@" in name:
        check_version(asked, board["tensorrt"], board["jetpack"])
    read = {
        key: Fact(board[key], f"read from {board['model']}", "high")
        for key in ("jetpack", "l4t", "tensorrt", "cuda")
        if board[key] is not None
    }
    return replace(asked, facts={**asked.facts, **read})


def check_version(target: Target, tensorrt: Optional[str], jetpack: Optional[str]) -> None:
    """Checks that a machine has the target's TensorRT; unknown versions pass.

    Raises:
        TargetError: it has another one.
    """
    wanted, meant = target.certain("tensorrt"), target.certain("jetpack")
    if not isinstance(wanted, str) or tensorrt is None or wanted.split(".")[:2] == tensorrt.split(".")[:2]:
        return
    means = f"{wanted} ({_titled(str(meant))})" if meant else wanted
    has = f"{tensorrt} ({_titled(jetpack)})" if jetpack else tensorrt
    release = (jetpack or "").split()[-1:]
    cure = "Omit --target, or write a target of this machine: deadweight targets --from local."
    if release:
        cure = f'Give --jetpack {release[0]}; in a recipe: jetpack = "{release[0]}".'
    raise TargetError(f"{target.title} means TensorRT {means}, but this machine has {has}.", cure)


def with_jetpack(target: Optional[str], jetpack: Optional[str]) -> Optional[str]:
    """The target's name with a JetPack.

    Raises:
        TargetError: there is a JetPack without a target.
    """
    if jetpack is None:
        return target
    if target is None:
        raise TargetError(f"--jetpack {jetpack} needs a board.", "Give --target too: deadweight targets.")
    return f"{target.partition('@')[0]}@{jetpack.split()[-1]}"


def _with_likes(path: Path, seen: Tuple[Path, ...]) -> Dict[str, Any]:
    """The content of a board's file over that of the files that it is like."""
    table = read_toml(path, TargetError)
    like = table.pop("like", None)
    if like is None:
        return table
    names = (BOARDS / f"{like}.toml", BOARDS / f"_{like}.toml", path.parent / str(like))
    other = next((place for place in names if place.is_file()), None)
    if other is None or other in seen:
        fault = "does not exist" if other is None else "is like this file again"
        raise TargetError(
            f"{path.name} is like '{like}', which {fault}.",
            f"Give nvidia, orin, thor, xavier, a .toml file or one of {', '.join(target_names())}.",
        )
    base = _with_likes(other, (*seen, path))
    merged = {
        key: {**_table(base.get(key, {}), key), **_table(table.get(key, {}), f"{path.name}: {key}")}
        for key in ("alignment", "facts", "older")
    }
    return {**base, **table, **merged}


def _with_software(table: Dict[str, Any], asked: Optional[str], where: str) -> Dict[str, Any]:
    """A board's file with the facts of a release, by default those of its `jetpack`."""
    default, older = table.pop("jetpack", None), table.pop("older", {})
    known = table.pop("jetpacks", [default] if default else [])
    if default is None and asked is None:
        return table
    chosen = default if asked is None else _release(asked, known)
    if chosen is None:
        raise TargetError(
            f"There is no JetPack {asked} for {table.get('title', where)}.",
            f"Known: {', '.join(known)}." if known else "Omit it: this target has no JetPack.",
        )
    facts = dict(_table(table.get("facts", {}), f"{where}: facts"))
    for bound, more in older.items():
        facts.update(more if _numbers(chosen) < _numbers(bound) else {})
    software = _software(chosen)
    if asked is not None and chosen != default:
        table["name"] = f"{table.get('name', where)}@{chosen.split()[-1]}"
        table["title"] = f"{table.get('title', where)}, {_titled(chosen)}"
    return {**table, "facts": {**software, **facts} if asked is None else {**facts, **software}}


def _software(release: str) -> Dict[str, Any]:
    """The facts of a release: jetpack, l4t, tensorrt, cuda, python."""
    for row in read_toml(BOARDS / "_jetpack.toml", TargetError)["release"]:
        if release in row["names"]:
            names = ("tensorrt", "cuda", "python")
            l4t = next((each for each, jetpack in JETPACKS.items() if jetpack == release), None)
            values = {
                "jetpack": release,
                **({"l4t": l4t} if l4t else {}),
                **{name: row[name] for name in names},
            }
            return {
                name: {"value": value, "source": row["source"], "certainty": row["certainty"]}
                for name, value in values.items()
            }
    raise TargetError(
        f"The software of {_titled(release)} is not known.", "Give the facts in your own .toml."
    )


def _release(asked: str, known: Sequence[str]) -> Optional[str]:
    """The known release that is meant: `6.0.10.1` is `DriveOS 6.0.10`."""
    numbers = _numbers(asked)
    fitting = [each for each in known if numbers[: len(_numbers(each))] == _numbers(each)]
    return max(fitting, key=lambda each: len(_numbers(each)), default=None)


def _numbers(release: str) -> Tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]+", release.split()[-1] if release.strip() else "")))


def _titled(release: str) -> str:
    return f"JetPack {release}" if release[:1].isdigit() else release


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
