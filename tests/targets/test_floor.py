"""The ground floor stands on Python 3.8 and numpy alone: that is what a board has."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[2]
FLOOR = HOUSE / "targets"
SOURCES = sorted(FLOOR.rglob("*.py"))
NAMES = [path.relative_to(FLOOR).with_suffix("").parts for path in SOURCES]
MODULES = [".".join(("deadweight", "targets", *parts)) for parts in NAMES]
WITHOUT_NUMPY = [
    "errors",
    "artifact",
    "target",
    "machine.nvidia_tools",
    "machine.jetson",
    "machine.probe",
    "doctor",
    "timing.memory",
]


def python38() -> str | None:
    """A Python 3.8, by name or where pyenv keeps them."""
    kept = sorted((Path.home() / ".pyenv" / "versions").glob("3.8.*/bin/python"))
    for python in [*map(str, kept), shutil.which("python3.8")]:
        if python and subprocess.run([python, "-V"], capture_output=True, check=False).returncode == 0:
            return python
    return None


def importing(modules: list[str], *, python: str, blocked: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import importlib, sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in sys.argv[1].split(','): raise ImportError(name + ' is refused')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "for name in sys.argv[3:]: importlib.import_module(name)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [python, "-W", "error", "-c", program, blocked, str(HOUSE), *modules],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_every_module_imports_where_nothing_but_numpy_can_be_imported() -> None:
    blocked = "torch,onnx,pydantic,scipy,typer,rich,plotly,safetensors,onnxruntime,tensorrt,cuda,pycuda,tomli"
    done = importing(MODULES, python=sys.executable, blocked=blocked)
    assert done.returncode == 0, done.stderr


def test_the_guard_of_that_test_does_refuse() -> None:
    assert "numpy is refused" in importing(MODULES, python=sys.executable, blocked="numpy").stderr


def test_what_a_bare_board_needs_imports_without_numpy() -> None:
    modules = [f"deadweight.targets.{name}" for name in WITHOUT_NUMPY]
    done = importing(modules, python=sys.executable, blocked="numpy,onnxruntime")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(FLOOR)) for path in SOURCES])
def test_every_file_is_python_38(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 8))


@pytest.mark.skipif(python38() is None, reason="there is no Python 3.8 here")
def test_a_real_python_38_compiles_every_file_and_imports_what_needs_no_numpy(tmp_path: Path) -> None:
    python = python38()
    assert python is not None
    program = (
        "import py_compile as p, sys\nfor name in sys.argv[2:]: p.compile(name, sys.argv[1], doraise=True)"
    )
    compiled = subprocess.run(
        [python, "-c", program, str(tmp_path / "a.pyc"), *map(str, SOURCES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert compiled.returncode == 0, compiled.stderr
    modules = [f"deadweight.targets.{name}" for name in WITHOUT_NUMPY]
    imported = importing(modules, python=python, blocked="numpy,onnxruntime")
    assert imported.returncode == 0, imported.stderr
