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


# Which folders a folder may import, beside itself and the files at a floor's root. What is not listed is not
# imported. Imports inside functions count; those for types alone do not.
ARROWS = {
    "deadweight": "deadweight/api deadweight/commands deadweight/terminal EVERYTHING",
    "deadweight/api": "export/lint export/memory export/onnx_graph export/quantization pipeline/budget "
    "pipeline/pruning pipeline/report pipeline/runs pipeline/training pipeline/workloads "
    "targets/engines targets/gate targets/machine targets/remote targets/runtimes targets/timing",
    "deadweight/commands": "deadweight/api deadweight/terminal export/coding export/onnx_graph "
    "export/release pipeline/report pipeline/workloads targets/coded targets/engines targets/gate "
    "targets/release targets/remote targets/runtimes targets/timing",
    "deadweight/terminal": "deadweight/api pipeline/report pipeline/runs targets/gate targets/machine "
    "targets/timing",
    "pipeline": "pipeline/pruning",
    "pipeline/pruning": "",
    "pipeline/training": "pipeline/pruning pipeline/workloads targets/runtimes",
    "pipeline/workloads": "",
    "pipeline/importance": "pipeline/pruning pipeline/training",
    "pipeline/executors": "",
    "pipeline/loggers": "",
    "pipeline/compression": "pipeline/importance pipeline/pruning pipeline/training targets/timing",
    "pipeline/budget": "pipeline/pruning pipeline/training export/onnx_graph export/quantization "
    "targets/remote targets/runtimes targets/timing",
    "pipeline/quantization": "pipeline/training export/onnx_graph export/parity export/quantization "
    "targets/runtimes targets/timing",
    "pipeline/stages": "pipeline/budget pipeline/compression pipeline/importance pipeline/pruning "
    "pipeline/quantization pipeline/training export/coding export/lint export/onnx_graph export/parity "
    "export/quantization targets/engines targets/machine targets/remote targets/runtimes targets/timing",
    "pipeline/report": "targets/engines targets/gate targets/timing",
    "pipeline/runs": "pipeline/budget pipeline/executors pipeline/importance pipeline/loggers "
    "pipeline/pruning pipeline/quantization pipeline/report pipeline/stages pipeline/training "
    "pipeline/workloads export/lint export/onnx_graph export/release "
    "targets/machine targets/timing",
    "export": "export/lint export/onnx_graph export/parity export/quantization",
    "export/onnx_graph": "",
    "export/parity": "export/onnx_graph",
    "export/quantization": "export/onnx_graph",
    "export/lint": "export/onnx_graph export/quantization targets/engines",  # it asks NVIDIA's parser
    "export/memory": "export/onnx_graph targets/runtimes",
    "export/coding": "export/onnx_graph targets/coded",
    "export/release": "export/coding export/onnx_graph export/quantization targets/engines targets/machine "
    "targets/release targets/runtimes",
    "targets": "targets/coded targets/engines targets/machine targets/release targets/remote "
    "targets/runtimes targets/timing",  # the agent and the doctor stand on all of them
    "targets/boards": "",
    "targets/coded": "",
    "targets/machine": "",
    "targets/engines": "targets/machine",
    "targets/runtimes": "targets/engines targets/machine targets/timing",  # it says how layers are timed
    "targets/timing": "targets/machine targets/runtimes",
    "targets/gate": "targets/machine targets/runtimes targets/timing",
    "targets/release": "targets/coded targets/engines targets/machine targets/runtimes",
    "targets/remote": "targets/engines targets/release targets/runtimes targets/timing",
}
FILES_AT_THE_ROOT = {
    "deadweight": {"__init__", "__main__", "cli", "criteria", "testing"},
    "pipeline": {"__init__", "workload", "work", "stage", "recipe"},
    "export": {"__init__", "to_onnx", "int8", "opened"},
    "targets": {
        *("__init__", "agent", "doctor", "target", "board_file", "budgets", "memory_fit", "errors"),
        *("artifact", "onnx_file", "paths", "plain", "sealed", "progress", "visible"),
    },
}


def sources(floor: str) -> list[Path]:
    """The floor's own files; the links in deadweight/ are other floors."""
    found = sorted((ROOT / floor).rglob("*.py"))
    others = {ROOT / floor / other for other in FLOORS}
    return [path for path in found if not others & set(path.parents)]


def imported(path: Path) -> set[Path]:
    """The files of ours that a file imports when it runs, inside functions too."""
    found: set[Path] = set()
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level == 0:
            assert (node.module or "").split(".")[0] != "deadweight", f"{path} imports deadweight absolutely"
            continue
        inside = path.relative_to(ROOT).parent.parts
        package = inside if inside[0] == "deadweight" else ("deadweight", *inside)
        base = (*package[: len(package) - node.level + 1], *(node.module.split(".") if node.module else ()))
        found |= {file_of((*base, alias.name)) or file_of(base) or path for alias in node.names}
    return found - {path}


def file_of(module: tuple[str, ...]) -> Path | None:
    place = ROOT.joinpath(*(module[1:] if module[1:2] and module[1] in FLOORS else module))
    if place.with_suffix(".py").is_file():
        return place.with_suffix(".py")
    return place / "__init__.py" if (place / "__init__.py").is_file() else None


def folder(path: Path) -> str:
    return str(path.parent.relative_to(ROOT))


@pytest.mark.parametrize("floor", [*FLOORS, "deadweight"])
def test_a_folder_imports_only_what_the_table_allows(floor: str) -> None:
    order = [*FLOORS, "deadweight"]
    for path in sources(floor):
        allowed = ARROWS[folder(path)].split()
        for other in imported(path):
            there = folder(other)
            assert order.index(there.split("/")[0]) <= order.index(floor), f"{path} imports {other}"
            ok = there == folder(path) or "/" not in there or there in allowed or "EVERYTHING" in allowed
            assert ok, f"{path} imports {other}"


def test_no_two_files_import_each_other_however_far_around() -> None:
    graph = {path: imported(path) for floor in (*FLOORS, "deadweight") for path in sources(floor)}
    while done := [path for path, others in graph.items() if not others & set(graph)]:
        for path in done:
            del graph[path]
    assert not graph, sorted(str(path.relative_to(ROOT)) for path in graph)


@pytest.mark.parametrize("floor", [*FLOORS, "deadweight"])
def test_a_folder_is_neither_a_splinter_nor_a_heap_and_no_file_name_comes_twice(floor: str) -> None:
    assert {path.stem for path in sources(floor) if folder(path) == floor} == FILES_AT_THE_ROOT[floor]
    names = [path.name for path in sources(floor) if path.name != "__init__.py"]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    for place in {path.parent for path in sources(floor)} - {ROOT / floor}:
        files = [path for path in place.iterdir() if path.is_file() and path.name != "__init__.py"]
        assert 2 <= len(files) <= 30, place
        assert len(place.relative_to(ROOT).parts) == 2, place


def test_every_package_is_listed_and_every_listed_package_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    inits = [path for floor in (*FLOORS, "deadweight") for path in sources(floor) if path.stem == "__init__"]
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in inits}
    assert listed == {name if name.startswith("deadweight") else f"deadweight.{name}" for name in found}


@pytest.mark.parametrize("floor", [*FLOORS, "deadweight"])
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
    # The kind of an engine's layer, the name of an artifact and that of a split are no stages.
    "stages": (STAGES, r"^(?!layer\.kind|work\.artifacts|split$)", ("pipeline/stages",)),
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
