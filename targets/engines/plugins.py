"""Plugin libraries: operators of the user's own, loaded before an engine that has them is built or opened.

A library is code. Only one that the user names is loaded (`--plugin`, or the environment variable
DEADWEIGHT_PLUGINS), never one of a bundle. Its SHA-256 is part of the engine's record, and the engine is
opened only with the same library.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple, Union

from ..artifact import sha256_of
from ..errors import ModelError, TargetError, reported

ENVIRONMENT = "DEADWEIGHT_PLUGINS"
"""The libraries for engines that are opened, separated by colons. Child processes inherit it."""
_MACHINES = {62: "x86_64", 183: "aarch64"}
"""ELF's numbers of machines, by the names of `platform.machine`."""


def given_plugins() -> Tuple[str, ...]:
    """The libraries that the user gave for opening engines."""
    return tuple(path for path in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if path)


def give_plugins(paths: Iterable[Union[str, Path]]) -> None:
    """Adds libraries for engines that this process and its children open; on a board, paths there."""
    given = (*given_plugins(), *map(str, paths))
    if given:
        os.environ[ENVIRONMENT] = os.pathsep.join(dict.fromkeys(given))


def load_plugins(paths: Sequence[str]) -> List[Dict[str, str]]:
    """Loads libraries, which register their operators; returns file and SHA-256 of each.

    TensorRT must be imported before, because these libraries need its own.
    """
    loaded = []
    for path in paths:
        loaded.append(library_facts(path))
        cure = "Build it on this machine, for the TensorRT and the CUDA that are installed here."
        with reported(TargetError, f"The plugin library {path} cannot be loaded", cure):
            ctypes.CDLL(str(Path(path).resolve()), mode=ctypes.RTLD_GLOBAL)
    return loaded


def library_facts(path: str) -> Dict[str, str]:
    """File and SHA-256 of a plugin library."""
    library = Path(path)
    if not library.is_file():
        raise TargetError(f"There is no plugin library at {path}.", "Check the path.")
    _check_machine(library)
    return {"file": path, "sha256": sha256_of(library)}


def check_plugins(record: Mapping[str, Any], plan: Path, loaded: Sequence[Mapping[str, str]]) -> None:
    """Compares the libraries that an engine was built with with those that were loaded."""
    hashes = {each["sha256"] for each in loaded}
    missing = [each for each in record.get("plugins", ()) if each["sha256"] not in hashes]
    if missing:
        named = ", ".join(f"{Path(each['file']).name} (SHA-256 {each['sha256'][:12]}…)" for each in missing)
        options = " ".join(f"--plugin {each['file']}" for each in missing)
        raise ModelError(
            f"{plan.name} was built with the plugin library {named}, which was not given, or has changed.",
            f"Give the same library: {options}, or {ENVIRONMENT}. With another one build the engine again.",
        )


def _check_machine(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(20)
    if head[:5] != b"\x7fELF\x02" or len(head) < 20:
        raise TargetError(f"{path} is not a library of a 64-bit Linux.", "Give the plugin's .so file.")
    number = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    machine = _MACHINES.get(number, f"machine {number}")
    if machine != platform.machine():
        raise TargetError(
            f"The plugin library {path} is built for {machine}, but this is {platform.machine()}.",
            "Build it on the board that runs it.",
        )
