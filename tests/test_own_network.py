"""The page on one's own network: what it shows is written, checked and run; and what `init` refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import deadweight
from deadweight.api.results import Checked
from deadweight.targets.errors import RecipeError

PAGE = Path(__file__).resolve().parents[1] / "docs" / "own-network.md"
(NET,) = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.setattr(sys, "path", [*sys.path])
    deadweight.init("net.py:build", "net.py:loaders", "classification", out=tmp_path)
    return tmp_path


def mistakes(found: Checked) -> list[str]:
    return [f"{one.where}: {one.what}" for one in found.findings if one.kind == "mistake"]


def test_what_init_writes_is_a_recipe_without_a_mistake(project: Path) -> None:
    found = deadweight.check(str(project / "recipe.toml"))
    assert not mistakes(found)
    words = " ".join(one.what for one in found.findings)
    assert "values [16]" not in words  # a Sequential calls it input
    assert "input [16] -> output [4]" in words


def test_init_never_overwrites(project: Path) -> None:
    before = (project / "workload.py").read_text()
    with pytest.raises(RecipeError, match="exists"):
        deadweight.init("net.py:build", "net.py:loaders", "regression", out=project)
    assert (project / "workload.py").read_text() == before


def test_init_names_a_task_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no task") as raised:
        deadweight.init("net.py:build", "net.py:loaders", "classifcation", out=tmp_path)
    assert "'classification'" in raised.value.cure


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "deadweight", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_without_a_terminal_init_asks_nothing(tmp_path: Path) -> None:
    done = command(tmp_path, "init")
    assert done.returncode == 2
    assert "--model is missing" in done.stderr


@pytest.mark.slow
def test_the_recipe_runs_to_the_report(project: Path) -> None:
    done = command(project, "run", "recipe.toml", "--set", "train.epochs=2", "--set", "profile.events=6")
    assert done.returncode in (0, 1, 3), done.stderr
    assert (project / "runs" / "recipe" / "report.html").is_file()
