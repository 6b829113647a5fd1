"""Bundles put in place: whole or not at all, the old one kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from signed import FILES, make_bundle, make_key, trust

from deadweight.targets.errors import ArtifactError, RefusedError
from deadweight.targets.install import install, rollback

HOUSE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def root(tmp_path: Path, key: Path) -> Path:
    trust(key, tmp_path / "root")
    return tmp_path / "root"


def version(place: Path, key: Path, mark: str) -> Path:
    return make_bundle(place / mark, key, {**FILES, "model.onnx": mark.encode()})


def model(place: Path) -> str:
    return (place / "small/current/model.onnx").read_text()


def test_a_bundle_is_installed_whole_and_the_one_before_is_kept(
    tmp_path: Path, root: Path, key: Path
) -> None:
    place = tmp_path / "place"
    first = install(version(tmp_path, key, "one"), place, root=root)
    assert first["previous"] is None
    assert model(place) == "one"
    second = install(version(tmp_path, key, "two"), place, root=root)
    assert model(place) == "two"
    assert second["previous"] == first["version"]
    assert {path.name for path in (place / "small/current/golden").iterdir()} == {
        "inputs.npz",
        "outputs.npz",
    }


def test_rollback_goes_back_and_forth(tmp_path: Path, root: Path, key: Path) -> None:
    place = tmp_path / "place"
    for mark in ("one", "two"):
        install(version(tmp_path, key, mark), place, root=root)
    rollback("small", place, root=root)
    assert model(place) == "one"
    rollback("small", place, root=root)
    assert model(place) == "two"


def test_there_must_be_something_to_roll_back_to(tmp_path: Path, root: Path, key: Path) -> None:
    place = tmp_path / "place"
    with pytest.raises(ArtifactError, match="No bundle called 'small'"):
        rollback("small", place, root=root)
    install(version(tmp_path, key, "one"), place, root=root)
    with pytest.raises(ArtifactError, match="no version of 'small' before"):
        rollback("small", place, root=root)


def test_a_version_that_went_bad_on_the_disk_is_not_rolled_back_to(
    tmp_path: Path, root: Path, key: Path
) -> None:
    place = tmp_path / "place"
    for mark in ("one", "two"):
        install(version(tmp_path, key, mark), place, root=root)
    (place / "small/previous/model.onnx").write_text("bad")
    with pytest.raises(RefusedError, match="was changed"):
        rollback("small", place, root=root)
    assert model(place) == "two"


def test_only_two_versions_are_kept(tmp_path: Path, root: Path, key: Path) -> None:
    place = tmp_path / "place"
    for mark in ("one", "two", "three"):
        install(version(tmp_path, key, mark), place, root=root)
    kept = [path for path in (place / "small").iterdir() if path.is_dir() and not path.is_symlink()]
    assert len(kept) == 2
    assert (place / "small/previous/model.onnx").read_text() == "two"


def test_installing_the_same_twice_changes_nothing(tmp_path: Path, root: Path, key: Path) -> None:
    place, bundle = tmp_path / "place", version(tmp_path, key, "one")
    assert install(bundle, place, root=root) == install(bundle, place, root=root)


def test_a_refused_bundle_leaves_everything_as_it_was(tmp_path: Path, root: Path, key: Path) -> None:
    place = tmp_path / "place"
    install(version(tmp_path, key, "one"), place, root=root)
    before = sorted(str(path) for path in place.rglob("*"))
    bad = version(tmp_path, key, "two")
    (bad / "golden/outputs.npz").write_bytes(b"tampered")  # the last file but one to be copied
    with pytest.raises(RefusedError):
        install(bad, place, root=root)
    assert sorted(str(path) for path in place.rglob("*")) == before
    assert model(place) == "one"


def test_two_installs_do_not_meet(tmp_path: Path, root: Path, key: Path) -> None:
    import fcntl

    place, bundle = tmp_path / "place", version(tmp_path, key, "one")
    install(bundle, place, root=root)
    with (place / "small/.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="Another install is at work"):
            install(bundle, place, root=root)


def test_a_bundle_larger_than_the_space_left_is_refused_before_anything_is_written(
    tmp_path: Path, root: Path, key: Path
) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1 << 60}
    bundle = make_bundle(tmp_path / "huge", key, {"model.onnx": b""}, files={"model.onnx": entry})
    with pytest.raises(ArtifactError, match=r"has .* MB left"):
        install(bundle, tmp_path / "place", root=root)
    assert not list((tmp_path / "place").rglob("model.onnx"))


@pytest.mark.parametrize("step", ["fsync", "rename", "symlink", "replace"])
def test_an_install_killed_at_any_step_leaves_the_old_one_and_succeeds_when_repeated(
    tmp_path: Path, root: Path, key: Path, step: str
) -> None:
    place = tmp_path / "place"
    install(version(tmp_path, key, "one"), place, root=root)
    bundle = version(tmp_path, key, "two")
    # The process kills itself just before the step's first system call.
    program = (
        "import os, signal, sys, pathlib\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from deadweight.targets.install import install\n"
        "def die(*a, **k): os.kill(os.getpid(), signal.SIGKILL)\n"
        "setattr(*{'fsync': (os, 'fsync'), 'rename': (pathlib.Path, 'rename'),"
        " 'symlink': (pathlib.Path, 'symlink_to'), 'replace': (pathlib.Path, 'replace')}[sys.argv[2]], die)\n"
        "install(pathlib.Path(sys.argv[3]), pathlib.Path(sys.argv[4]), root=pathlib.Path(sys.argv[5]))\n"
    )
    command = [sys.executable, "-c", program, str(HOUSE), step, str(bundle), str(place), str(root)]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert model(place) == "one"
    install(bundle, place, root=root)
    assert model(place) == "two"
    assert not list(place.rglob("*.part"))
