"""`import deadweight` is the package, wherever a script stands and however it was installed."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILT_FROM = [
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "deadweight",
    "pipeline",
    "export",
    "targets",
]
SCRIPT = (
    "import deadweight, deadweight.export, deadweight.pipeline\n"
    "print(deadweight.DeadweightError, deadweight.__file__)\n"
)


def ran(python: Path | str, *arguments: str | Path, at: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, *arguments], cwd=at, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def is_found_by(python: Path | str, beside: Path) -> str:
    """Where a script in the folder, one started elsewhere, and a notebook's kernel find the package."""
    for name in ("pipeline", "export", "targets"):
        (beside / name).mkdir()
    (beside / "export.py").write_text("raise SystemExit('the file of a user')\n")
    (beside / "train.py").write_text(SCRIPT)
    elsewhere = beside / "elsewhere"
    elsewhere.mkdir()
    seen = {
        ran(python, "train.py", at=beside),
        ran(python, beside / "train.py", at=elsewhere),
        ran(
            python, "-c", f"import sys; sys.path.insert(0, ''); {SCRIPT}", at=beside
        ),  # as a notebook's kernel
    }
    (found,) = seen
    return found


def copied(to: Path, *, links: bool = True) -> Path:
    """A checkout named deadweight; without links as Git writes it where core.symlinks is false."""
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, to / name, symlinks=True, ignore=ignored)
        else:
            to.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, to / name)
    for link in (each for each in (to / "deadweight").iterdir() if each.is_symlink() and not links):
        held = str(link.readlink())
        link.unlink()
        link.write_text(held)
    return to


def files(package: Path) -> set[Path]:
    """All that a package holds, also behind links, apart from what Python compiles."""
    found = {Path(at, name) for at, _, names in os.walk(package, followlinks=True) for name in names}
    return {path.relative_to(package) for path in found if path.suffix != ".pyc"}


def test_a_folder_named_like_the_package_beside_a_script_does_not_hide_it(tmp_path: Path) -> None:
    (tmp_path / "deadweight").mkdir()
    assert str(ROOT) in is_found_by(sys.executable, tmp_path)


def test_an_editable_install_looks_for_the_clone_last(tmp_path: Path) -> None:
    look = runpy.run_path(str(copied(tmp_path / "deadweight") / "setup.py"))["LOOK"]
    bare = "import sys; sys.path.insert(0, '')\n" + look + "import deadweight; print(deadweight.__file__)"
    assert ran(sys.executable, "-ISc", bare, at=tmp_path) == str(
        tmp_path / "deadweight/deadweight/__init__.py"
    )
    other = tmp_path / "other" / "deadweight"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("")
    assert ran(sys.executable, "-ISc", bare, at=tmp_path / "other") == str(other / "__init__.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    "how", ["editable", "editable without links", "wheel", "wheel without links", "sdist"]
)
def test_every_way_to_install_gives_the_package(tmp_path: Path, how: str) -> None:
    checkout = copied(tmp_path / "deadweight", links="without links" not in how)
    built = tmp_path / "built"
    hook = "editable" if "editable" in how else "sdist" if how == "sdist" else "wheel"
    build = (
        "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
    )
    built.mkdir()
    ran(sys.executable, "-c", build, f"build_{hook}", built, at=checkout)
    if hook == "sdist":
        (archive,) = built.glob("*.tar.gz")
        shutil.unpack_archive(archive, tmp_path / "unpacked", filter="data")
        (unpacked,) = (tmp_path / "unpacked").iterdir()
        ran(sys.executable, "-c", build, "build_wheel", built, at=unpacked)
    (wheel,) = built.glob("*.whl")
    ran(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", at=tmp_path)
    python = tmp_path / "venv/bin/python"
    ran(
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        wheel,
        at=tmp_path,
    )
    found = is_found_by(python, tmp_path)
    assert str(checkout if hook == "editable" else tmp_path / "venv/lib") in found
    if hook != "editable":
        assert files(Path(found.split()[-1]).parent) == files(ROOT / "deadweight")
