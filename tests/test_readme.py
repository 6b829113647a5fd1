"""The fenced blocks of READMEs and pages that are marked, run as a reader would: in order, in one folder.

A block is marked by a comment on the line before it: <!-- run --> or, where it takes long, <!-- run slow -->.
One marked <!-- file: NAME --> is written to that file.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"<!-- run( slow)? -->\n```(\w+)\n(.*?)```", re.DOTALL)
FILE = re.compile(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
# On these pages every block is run.
PAGES = tuple(f"docs/{name}.md" for name in ("start", "detector", "ci", "alignment", "dialects", "logging"))
READMES = ("README.md", "examples/fashion_mnist/README.md", *PAGES)


def blocks(*, slow: bool) -> list[tuple[str, str, str]]:
    return [
        (readme, language, text)
        for readme in READMES
        for mark, language, text in BLOCK.findall((ROOT / readme).read_text("utf-8"))
        if bool(mark) == slow
    ]


def checkout(place: Path) -> Path:
    """A folder with a checkout's files, without what was made in it."""
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in ("runs", "build", "deadweight.egg-info"):
            (place / path.name).symlink_to(path)
    return place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = checkout(tmp_path_factory.mktemp("readme"))
    for page in PAGES:
        for name, text in FILE.findall((ROOT / page).read_text("utf-8")):
            (place / name).write_text(text)
    return place


def run(folder: Path, language: str, text: str, allowed: tuple[int, ...] = (0,)) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", text] if language == "sh" else [sys.executable, "-c", text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in allowed, f"{text}\n{done.stdout}\n{done.stderr}"


def test_there_are_blocks_to_run() -> None:
    assert blocks(slow=False)
    assert blocks(slow=True)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_run(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    fenced = len(re.findall(r"^```\w+$", text, re.MULTILINE))
    assert fenced == len(BLOCK.findall(text)) + len(FILE.findall(text))


@pytest.mark.parametrize(("readme", "language", "text"), blocks(slow=False))
def test_a_block_does_what_it_says(folder: Path, readme: str, language: str, text: str) -> None:
    run(folder, language, text)


@pytest.mark.slow
@pytest.mark.parametrize(("readme", "language", "text"), blocks(slow=True))
def test_a_long_block_does_what_it_says(folder: Path, readme: str, language: str, text: str) -> None:
    run(folder, language, text)
