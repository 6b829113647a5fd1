"""A board's TOML file: what it is like, the software of its JetPack, and a file written from a board's facts.

`like` names another board or a family (`_NAME.toml`), whose values and facts a file takes; `jetpacks` are
the releases that exist for the board, `jetpack` is the default one; `[older."6.2"]` has the facts that differ
before a release; `read_here` adds the facts of this machine's card.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Type

from .errors import DeadweightError, TargetError
from .machine.nvidia_tools import JETPACKS
from .runtimes.runtime import known_runtimes

BOARDS = Path(__file__).parent / "boards"


def read_board(path: Path, jetpack: Optional[str] = None) -> Dict[str, Any]:
    """The content of a board's file, in the schema of `Target.from_json`, with the facts of a JetPack."""
    return completed(read_toml(path, TargetError), path, jetpack)


def completed(table: Dict[str, Any], path: Path, jetpack: Optional[str] = None) -> Dict[str, Any]:
    """As `read_board`, for a file's content; `path` is for messages, and for what it is like."""
    full = _with_software(_with_likes(table, path, ()), jetpack, path.name)
    if full.pop("read_here", False):
        from .machine.board_facts import card_facts

        here = {name: _fact(*fact) for name, fact in card_facts().items()}
        full["facts"] = {**here, **full.get("facts", {})}
    return full


def described(facts: Mapping[str, Any], name: str) -> Dict[str, Any]:
    """The content of a file for a board with these facts, see `machine/board_facts.py`."""
    board, clock, mode = facts["board"], facts["clocks"].get("gpu") or {}, facts["power_mode"] or {}
    builders = {runtime.name for runtime in known_runtimes() if runtime.builds}
    builds = any(runtime["name"] in builders for runtime in facts["runtimes"])
    builds = builds or (board["tensorrt"] is not None and board["compute_capability"] is not None)
    source = f"read from {board['model']}"
    read = {
        **{key: _fact(board[key], source, "high") for key in ("jetpack", "l4t", "tensorrt", "cuda")},
        "compute_capability": _fact(board["compute_capability"], source, "high"),
        "streaming_multiprocessors": _fact(facts["sms"], f"{source}, by CUDA", "high"),
        "usable_memory_bytes": _fact(facts["memory_bytes"], f"{source}, its whole memory", "high"),
        "dla_cores": _fact(facts["dla_cores"], f"{source}, its device tree", "low"),
        "gpu_hz": _fact(
            clock.get("max_hz"), f"{source}, the limit in {mode.get('name') or 'its mode'}", "low"
        ),
    }
    kind: Dict[str, Any] = {"runtime": "onnxruntime", "precisions": ["fp32", "int8"]}
    if builds:
        kind = {"like": _family(board["compute_capability"]), "jetpack": _known(board["jetpack"])}
    known = {key: fact for key, fact in read.items() if fact["value"] is not None}
    return {"name": name, "title": board["model"], **kind, "facts": known}


def board_file(table: Mapping[str, Any]) -> str:
    """A board's content as TOML."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if key != "facts"]
    lines += ["", "[facts]"]
    for name, fact in table["facts"].items():
        parts = ", ".join(f"{key} = {json.dumps(value)}" for key, value in fact.items())
        lines.append(f"{name} = {{ {parts} }}")
    return "\n".join(["# Written by `deadweight targets --from`. Correct what you know better.", *lines, ""])


def with_jetpack(target: Optional[str], jetpack: Optional[str]) -> Optional[str]:
    """The target's name with a JetPack."""
    if not jetpack:
        return target
    if target is None:
        raise TargetError(f"--jetpack {jetpack} needs a board.", "Give --target too: deadweight targets.")
    return f"{target.partition('@')[0]}@{jetpack.split()[-1]}"


def _with_likes(table: Dict[str, Any], path: Path, seen: Tuple[Path, ...]) -> Dict[str, Any]:
    """The content of a board's file over that of the files that it is like."""
    like = table.pop("like", None)
    if like is None:
        return table
    names = (BOARDS / f"{like}.toml", BOARDS / f"_{like}.toml", path.parent / str(like))
    other = next((place for place in names if place.is_file()), None)
    if other is None or other in seen:
        boards = ", ".join(sorted(path.stem for path in BOARDS.glob("[a-z]*.toml")))
        fault = "does not exist" if other is None else "is like this file again"
        raise TargetError(
            f"{path.name} is like '{like}', which {fault}.",
            f"Give nvidia, orin, thor, xavier, a .toml file or one of {boards}.",
        )
    base = _with_likes(read_toml(other, TargetError), other, (*seen, path))
    merged = {
        key: {**table_of(base.get(key, {}), key), **table_of(table.get(key, {}), f"{path.name}: {key}")}
        for key in ("alignment", "facts", "older")
    }
    return {**base, **table, **merged}


def _with_software(table: Dict[str, Any], asked: Optional[str], where: str) -> Dict[str, Any]:
    """A board's file with the facts of a release, by default its `jetpack`; an empty one adds none."""
    default, older = table.pop("jetpack", None), table.pop("older", {})
    known = table.pop("jetpacks", [default] if default else [])
    if not default and asked is None:
        return table
    chosen = default if asked is None else _release(asked, known)
    if chosen is None:
        raise TargetError(
            f"There is no JetPack {asked} for {table.get('title', where)}.",
            f"Known: {', '.join(known)}." if known else "Omit it: this target has no JetPack.",
        )
    facts = dict(table_of(table.get("facts", {}), f"{where}: facts"))
    for bound, more in older.items():
        facts.update(more if _numbers(chosen) < _numbers(bound) else {})
    software = _software(chosen)
    if asked is not None and chosen != default:
        table["name"] = f"{table.get('name', where)}@{chosen.split()[-1]}"
        table["title"] = f"{table.get('title', where)}, {titled(chosen)}"
    return {**table, "facts": {**software, **facts} if asked is None else {**facts, **software}}


def _software(release: str) -> Dict[str, Any]:
    """The facts of a release: jetpack, l4t, tensorrt, cuda, python."""
    for row in _releases():
        if release in row["names"]:
            names = ("tensorrt", "cuda", "python")
            l4t = next((each for each, jetpack in JETPACKS.items() if jetpack == release), None)
            values = {
                "jetpack": release,
                **({"l4t": l4t} if l4t else {}),
                **{name: row[name] for name in names},
            }
            return {name: _fact(value, row["source"], row["certainty"]) for name, value in values.items()}
    raise TargetError(f"The software of {titled(release)} is not known.", "Give the facts in your own .toml.")


def _releases() -> List[Dict[str, Any]]:
    return list(read_toml(BOARDS / "_jetpack.toml", TargetError)["release"])


def _known(jetpack: Optional[str]) -> str:
    """A board's release, or "" where its software is not in our table: nothing is guessed then."""
    return jetpack if jetpack and any(jetpack in row["names"] for row in _releases()) else ""


def _release(asked: str, known: Sequence[str]) -> Optional[str]:
    """The known release that is meant: `6.0.10.1` is `DriveOS 6.0.10`."""
    numbers = _numbers(asked)
    fitting = [each for each in known if numbers[: len(_numbers(each))] == _numbers(each)]
    return max(fitting, key=lambda each: len(_numbers(each)), default=None)


def _numbers(release: str) -> Tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]+", release.split()[-1] if release.strip() else "")))


def titled(release: str) -> str:
    """A release for readers: `JetPack 6.2.1`, `DriveOS 7.0.3`."""
    return f"JetPack {release}" if release[:1].isdigit() else release


def _family(compute_capability: Optional[str]) -> str:
    """The family of boards with this GPU, or what all boards with TensorRT share."""
    for path in sorted(BOARDS.glob("_*.toml")):
        fact = read_toml(path, TargetError).get("facts", {}).get("compute_capability", {})
        if compute_capability is not None and fact.get("value") == compute_capability:
            return path.stem[1:]
    return "nvidia"


def _fact(value: Any, source: str, certainty: str) -> Dict[str, Any]:
    return {"value": value, "source": source, "certainty": certainty}


def table_of(value: Any, where: str) -> Dict[str, Any]:
    """A table of TOML."""
    if not isinstance(value, Mapping):
        raise TargetError(
            f"{where} is {value!r}, not a table.", f"Write it as a table: [{where.split(': ')[-1]}]."
        )
    return dict(value)


def read_toml(path: Path, kind: Type[DeadweightError]) -> Dict[str, Any]:
    """The content of a TOML file; an error of that kind if it cannot be read, or is not TOML."""
    # tomllib needs Python 3.11; tomli is the same library for older versions.
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    try:
        toml: Any = importlib.import_module(name)
    except ImportError as error:
        cure = "Install it: pip install tomli"
        raise kind(f"{path} is TOML, which this Python cannot read without {name}.", cure) from error
    try:
        return dict(toml.loads(path.read_text(encoding="utf-8-sig")))  # Windows' Notepad writes such a mark
    except FileNotFoundError as error:
        raise kind(f"{path} does not exist.", "Check the path.") from error
    except OSError as error:
        raise kind(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    except UnicodeDecodeError as error:
        raise kind(f"{path} is not UTF-8 text: {error}.", "Save it as UTF-8.") from error
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or deep brackets
        raise kind(f"{path} is not valid TOML: {error}.", "Correct that line.") from error
