"""The rules of the house that a machine can hold: floors, packages, and what the ground floor may import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deadweight.targets.runtimes.runtime import DIALECTS, known_runtimes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
FLOORS = ("targets", "export", "pipeline")  # from the ground up


def sources(floor: str) -> list[Path]:
    return sorted(path for path in (ROOT / floor).rglob("*.py"))


def imported_floors(path: Path) -> set[str]:
    """The floors that a file's relative imports reach."""
    inside = path.relative_to(ROOT).parent.parts  # ("pipeline",): `..` is deadweight
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level > len(inside):
            found.add((node.module or node.names[0].name).split(".")[0])
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert (node.module or "").split(".")[0] != "deadweight", f"{path} imports deadweight absolutely"
    return found


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_go_down_only(floor: str) -> None:
    allowed = set(FLOORS[: FLOORS.index(floor)])
    for path in sources(floor):
        assert imported_floors(path) <= allowed, path


def test_every_package_is_listed_and_every_listed_package_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    found = {"deadweight", "deadweight.api", "deadweight.commands", "deadweight.terminal"}
    for floor in FLOORS:
        for init in (ROOT / floor).rglob("__init__.py"):
            found.add(".".join(("deadweight", *init.parent.relative_to(ROOT).parts)))
    assert listed == found


@pytest.mark.parametrize("floor", FLOORS)
def test_no_file_is_longer_than_it_can_be_read(floor: str) -> None:
    for path in sources(floor):
        assert len(path.read_text("utf-8").splitlines()) <= 450, path


def test_the_ground_floor_imports_where_torch_onnx_and_pydantic_cannot_be() -> None:
    modules = [
        ".".join(("deadweight", *path.relative_to(ROOT).with_suffix("").parts)) for path in sources("targets")
    ]
    code = (
        "import importlib, sys\n"
        "for name in ('torch', 'onnx', 'pydantic', 'typer', 'rich', 'scipy', 'onnxruntime', 'tensorrt'):\n"
        "    sys.modules[name] = None\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_deadweight_imports_nothing_heavy() -> None:
    code = "import sys, deadweight; print(sorted({'torch', 'onnx', 'numpy', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def compared_strings(path: Path) -> list[tuple[int, str, str]]:
    """Each text that a file compares with something (==, !=, in, match): line, text, the other side."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            for at, side in enumerate(sides):
                items = side.elts if isinstance(side, (ast.Tuple, ast.List, ast.Set)) else [side]
                others = " ".join(ast.unparse(other) for place, other in enumerate(sides) if place != at)
                texts = [item.value for item in items if isinstance(item, ast.Constant)]
                found += [(node.lineno, text, others) for text in texts if isinstance(text, str)]
        elif isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant):
            found.append((node.lineno, str(node.value.value), "match"))
    return found


RUNTIMES = {one.name for one in known_runtimes(variants=True)} | set(DIALECTS)
STAGES = {path.stem for path in (ROOT / "pipeline" / "stages").glob("[a-z]*.py")}
NO_NAMES = {
    # A runtime is asked what it does. engines/ is TensorRT's own builder and tells its two flavours apart.
    "runtimes": (RUNTIMES, r"", ("targets/runtimes", "targets/engines")),
    # The kind of an engine's layer and the name of an artifact are no stages.
    "stages": (STAGES, r"^(?!layer\.kind|work\.artifacts)", ("pipeline/stages",)),
}
"""By kind: the names, what stands on the other side (a pattern), and the folders that may compare them."""


@pytest.mark.parametrize("kind", NO_NAMES)
def test_no_code_asks_a_name(kind: str) -> None:
    names, meets, inside = NO_NAMES[kind]
    asked = [
        f"{path.relative_to(ROOT)}:{line}: {text!r} compared with {other}"
        for floor in ("deadweight", *FLOORS)
        for path in sources(floor)
        if not str(path.relative_to(ROOT)).startswith(inside)
        for line, text, other in compared_strings(path)
        if text in names and re.search(meets, other)
    ]
    assert not asked, "\n".join(asked)
