"""Recipes, and `deadweight` called in this process as a user types it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from deadweight.__main__ import main
from support import digits

Named = str | tuple[str, dict[str, Any]]
DIGITS = f"{digits.__file__}:Digits"
MINE = "from small import Digits\n\n\nclass Mine(Digits):\n    pass\n"


def recipe(*stages: Named, workload: str = DIGITS, head: str = "") -> str:
    """A recipe of these stages, each a name or a name with settings; `head` stands before them."""
    lines = [f"workload = {json.dumps(workload)}", head]
    for each in stages:
        name, settings = (each, {}) if isinstance(each, str) else each
        lines += ["[[stages]]", f'stage = "{name}"']
        lines += [f"{key} = {_toml(value)}" for key, value in settings.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


def project_of(folder: Path, text: str) -> Path:
    """The folder with a recipe and the user's own workload `mine.py:Mine`."""
    shutil.copy(digits.__file__, folder / "small.py")
    (folder / "mine.py").write_text(MINE)
    (folder / "recipe.toml").write_text(text)
    return folder


def exit_code(*arguments: object) -> int:
    """The exit code of `deadweight ARGUMENTS`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["deadweight", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
    return int(caught.value.code or 0)


def run(project: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit code and report of `deadweight run` in a project's folder."""
    code = exit_code("run", project / "recipe.toml", "--out", project / "run", *arguments)
    return code, json.loads((project / "run" / "report.json").read_text())
