"""The rules of the house that a machine can hold: floors, packages, and what the ground floor may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

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
    found = {"deadweight", "deadweight.commands", "deadweight.terminal"}
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
