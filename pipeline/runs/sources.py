"""Which files of code a result depends on.

A cached result is stale as soon as the code that made it changes, the user's own file first of all. Code
is followed by its import statements, also those inside functions, down to the standard library and to
installed packages, whose versions stand in the cache key instead. What is imported for a type checker alone
(`if TYPE_CHECKING:`) never runs and is not followed.

What is not reached by imports is named: by a stage's `code()` (the user's criterion, the processes of a
training), and by `Networks.code` for the networks that a stage is given. A network with plain weights is what
`build_model()` returns with the weights of its file, both of them in the key already. A pruned one is rebuilt
by its plan, and the code that does so is in the key of every stage that is given one: the outputs of what is
loaded are compared with those that were saved, but how it trains on is not. Of this code, the tracer and its
rules are a part only for networks in graph form. Code that saves is in no key for its own sake: its files
hold hashes and an example, by which they are checked when they are loaded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

from ...targets.artifact import sha256_of


def source_hash(*files: Path) -> str:
    """The SHA-256 over these files and every file of code they import, one after the other."""
    digest = hashlib.sha256()
    for path in sorted(source_files(*files)):
        digest.update(f"{path.name}\0{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def package_versions(*files: Path) -> dict[str, str]:
    """The versions of all installed packages that these files, and what they import, bring in."""
    names = (name for path in source_files(*files) for name in _imported(path, path.stat().st_mtime_ns))
    tops = {dotted.split(".")[0] for dots, dotted in names if not dots and dotted}
    known = _distributions()
    wanted = {name for top in tops for name in known.get(top, ())}
    return {name: metadata.version(name) for name in sorted(wanted)}


def source_files(*files: Path) -> set[Path]:
    """These files and all they import, directly or not, that no installed package holds."""
    found: set[Path] = set()
    waiting = [Path(file).resolve() for file in files]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(_imports(path, path.stat().st_mtime_ns))
    return found


@cache
def _imports(path: Path, mtime_ns: int) -> tuple[Path, ...]:
    return tuple(file for name in _imported(path, mtime_ns) for file in _resolve(name, path))


@cache
def _imported(path: Path, _mtime_ns: int) -> tuple[tuple[int, str], ...]:
    """The modules a file imports, as (dots, name); read once for all that ask."""
    try:
        return tuple(_names(ast.parse(path.read_bytes())))
    except SyntaxError:
        return ()  # the import itself will say so, with the line


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The modules a tree imports when it runs, as (dots, name)."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            yield node.level, base
            yield from ((node.level, f"{base}.{alias.name}".strip(".")) for alias in node.names)


def _resolve(name: tuple[int, str], importer: Path) -> Iterator[Path]:
    dots, dotted = name
    parts = dotted.split(".") if dotted else []
    if dots:
        # `from ..targets` in pipeline/x.py: the floors lie beside each other under the root too.
        yield from _beneath(importer.parents[dots - 1], parts)
        return
    if parts and parts[0] in sys.stdlib_module_names:
        return
    local = list(_beneath(importer.parent, parts))
    if local:
        yield from local
        return
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError, AttributeError):
        return
    if spec is None or _is_installed(spec.origin):
        return
    for place in spec.submodule_search_locations or ():
        yield from _beneath(Path(place), parts[1:])
    if spec.origin and spec.origin.endswith(".py"):
        yield Path(spec.origin).resolve()


def _beneath(root: Path, parts: list[str]) -> Iterator[Path]:
    """The files that importing `parts` below `root` runs."""
    place = root
    for part in parts:
        place = place / part
        if place.with_suffix(".py").is_file():
            yield place.with_suffix(".py").resolve()
            return
        if (place / "__init__.py").is_file():
            yield (place / "__init__.py").resolve()
        elif not place.is_dir():
            return


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


@cache
def _is_installed(origin: str | None) -> bool:
    if origin is None:
        return False
    path = Path(origin)
    shared = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(shared) or Path(sysconfig.get_path("stdlib")) in path.parents
