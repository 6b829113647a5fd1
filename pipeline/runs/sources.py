"""The source files that a cached result depends on.

A cached result is stale as soon as the code that made it changes, above all the user's own file. Import
statements are followed, also those inside functions, down to the standard library and to installed packages,
whose versions are in the cache key instead. Imports only for a type checker (`if TYPE_CHECKING:`) never run
and are not followed.

Code that imports do not reach is named: by a stage's `code()` (the user's criterion, the module of training
processes), and by `NetworkFiles.code` for the networks that a stage receives. A network with plain weights is
`build_model()` with the weights of its file, which are both in the key already. A pruned one is rebuilt from
its plan, and the code that does so is in the key of every stage that receives one: its outputs are compared
with the saved ones when it is loaded, but its later training is not. The tracer and its rules belong to this
code only for networks in the graph form. Code that saves networks is in no key: its files have hashes and an
example, which are checked when they are loaded.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

from ...targets.artifact import sha256_of


def source_hash(*files: Path) -> str:
    """The SHA-256 over these files and every source file that they import, wherever they are."""
    held = sorted(f"{path.name}\0{sha256_of(path)}\n" for path in source_files(*files))
    return hashlib.sha256("".join(held).encode()).hexdigest()


def package_versions(*files: Path) -> dict[str, str]:
    """The versions of all installed packages that these files import, directly or not."""
    names = (name for path in source_files(*files) for name in _imported(path, path.stat().st_mtime_ns))
    tops = {dotted.split(".")[0] for dots, dotted in names if not dots and dotted}
    known = _distributions()
    wanted = {name for top in tops for name in known.get(top, ())}
    return {name: metadata.version(name) for name in sorted(wanted)}


def source_files(*files: Path) -> set[Path]:
    """These files and all that they import, directly or not, except installed packages."""
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
    """The modules that a file imports, as (dots, name); cached."""
    try:
        return tuple(_names(ast.parse(path.read_bytes())))
    except SyntaxError:
        return ()  # the import itself will raise, with the line


def _names(tree: ast.AST) -> Iterator[tuple[int, str]]:
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
        # `from ..targets` in pipeline/x.py: the floors are siblings under the root too.
        yield from _beneath(importer.parents[dots - 1], parts)
        return
    if parts and parts[0] in sys.stdlib_module_names:
        return
    if local := list(_beneath(importer.parent, parts)):
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


def _beneath(place: Path, parts: list[str]) -> Iterator[Path]:
    """The files that importing `parts` below `place` runs."""
    for part in parts:
        place = place / part
        if place.with_suffix(".py").is_file():
            yield place.with_suffix(".py").resolve()
            return
        if (place / "__init__.py").is_file():
            yield (place / "__init__.py").resolve()
        elif not place.is_dir():
            return


_distributions = cache(metadata.packages_distributions)


@cache
def _is_installed(origin: str | None) -> bool:
    if origin is None:
        return False
    path = Path(origin)
    shared = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(shared) or Path(sysconfig.get_path("stdlib")) in path.parents
