"""Releases put in place: whole or not at all, tried first, the old one kept. The model is really run."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from support.releases import FILES, make_bundle, make_key, make_release, packed, release_in_use, trust

from deadweight.export.release.delta import delta
from deadweight.targets.errors import ArtifactError, DeadweightError, RefusedError
from deadweight.targets.release.install import install, rollback

HOUSE = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    """Releases 1 to 3 as bundles, the way from each to the next as patches, and 3 as a whole update."""
    place = tmp_path_factory.mktemp("made")
    for number in (1, 2, 3):
        make_release(place / str(number), key, number)
    for number in (1, 2):
        delta(place / str(number), place / str(number + 1), place / f"{number}to{number + 1}")
    delta(None, place / "3", place / "whole3")
    return place


@pytest.fixture
def root(tmp_path: Path, key: Path) -> Path:
    trust(key, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "place"


def test_a_release_is_installed_whole_and_the_one_before_is_kept(place: Path, root: Path, made: Path) -> None:
    first = install(made / "1", place, root=root)
    assert first["previous"] is None
    assert first["golden"]["holds"]
    assert release_in_use(place, root) == 1
    second = install(made / "2", place, root=root)
    assert release_in_use(place, root) == 2
    assert (second["previous"], second["release"], second["clock"]) == (first["version"], 2, "")
    kept = {path.name for path in (place / "small/current/golden").iterdir()}
    assert kept == {"inputs.npz", "outputs.npz"}


def test_a_patch_makes_the_next_release_of_the_one_in_use(place: Path, root: Path, made: Path) -> None:
    install(made / "1", place, root=root)
    for number in (2, 3):
        result = install(made / f"{number - 1}to{number}", place, root=root)
        assert release_in_use(place, root) == number == result["release"]
    rollback("small", place, root=root)
    assert release_in_use(place, root) == 2
    assert install(made / "2to3", place, root=root)["version"] == result["version"]
    assert release_in_use(place, root) == 3


def test_a_patch_also_starts_from_the_release_before(place: Path, root: Path, made: Path) -> None:
    for number in (1, 2):
        install(made / str(number), place, root=root)
    rollback("small", place, root=root)
    install(made / "2to3", place, root=root)
    assert release_in_use(place, root) == 3


def test_a_whole_update_needs_nothing_to_start_from(place: Path, root: Path, made: Path) -> None:
    install(made / "whole3", place, root=root)
    assert release_in_use(place, root) == 3


def test_a_patch_from_another_release_is_refused(place: Path, root: Path, made: Path) -> None:
    with pytest.raises(RefusedError, match="which is not installed here"):
        install(made / "2to3", place, root=root)
    install(made / "1", place, root=root)
    with pytest.raises(RefusedError, match="which is not installed here"):
        install(made / "2to3", place, root=root)
    assert release_in_use(place, root) == 1


def test_a_patch_is_refused_where_its_base_went_bad_and_the_whole_release_mends_it(
    place: Path, root: Path, made: Path
) -> None:
    result = install(made / "2", place, root=root)
    model = Path(result["path"]) / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(RefusedError, match="was changed after it was signed"):
        install(made / "2to3", place, root=root)
    assert install(made / "2", place, root=root)["version"] == result["version"]
    assert release_in_use(place, root) == 2
    install(made / "2to3", place, root=root)
    assert release_in_use(place, root) == 3


def test_an_older_release_is_not_taken_again(place: Path, root: Path, made: Path) -> None:
    install(made / "2", place, root=root)
    with pytest.raises(RefusedError, match="release 2 was accepted here before"):
        install(made / "1", place, root=root)
    assert release_in_use(place, root) == 2


def test_going_back_does_not_let_an_older_release_in(place: Path, root: Path, made: Path) -> None:
    for number in (1, 3):
        install(made / str(number), place, root=root)
    rollback("small", place, root=root)
    with pytest.raises(RefusedError, match="release 3 was accepted"):
        install(made / "2", place, root=root)
    assert release_in_use(place, root) == 1


def test_two_bundles_of_one_number_are_not_both_taken(
    place: Path, root: Path, made: Path, key: Path, tmp_path: Path
) -> None:
    install(made / "2", place, root=root)
    other = make_release(tmp_path / "other", key, 2, made_at="2026-02-02T00:00:00+00:00")
    with pytest.raises(RefusedError, match="Another bundle was accepted as release 2"):
        install(other, place, root=root)


def test_an_expired_release_is_refused_and_one_that_expires_while_in_use_stays(
    place: Path, root: Path, made: Path, key: Path, tmp_path: Path
) -> None:
    install(made / "1", place, root=root)
    late = make_release(tmp_path / "late", key, 2, expires="2026-01-02T23:59:59+00:00")
    with pytest.raises(RefusedError, match="expired at 2026-01-02"):
        install(late, place, root=root)
    assert release_in_use(place, root) == 1


def test_a_release_stamped_by_a_clock_that_was_ahead_locks_out_no_later_one(
    place: Path, root: Path, made: Path, key: Path, tmp_path: Path
) -> None:
    ahead = make_release(tmp_path / "ahead", key, 2, made_at="2036-01-01T00:00:00+00:00")
    assert "2036-01-01" in install(ahead, place, root=root)["clock"]
    until = (datetime.now(timezone.utc) + timedelta(days=30)).isoformat(timespec="seconds")
    later = make_release(tmp_path / "later", key, 3, expires=until)
    assert install(later, place, root=root)["clock"] == ""
    with pytest.raises(RefusedError, match="release 3 was accepted"):
        install(ahead, place, root=root)


def test_where_the_state_is_lost_the_installed_release_counts(place: Path, root: Path, made: Path) -> None:
    install(made / "2", place, root=root)
    state = place / "small/accepted.json"
    assert stat.S_IMODE(state.stat().st_mode) == 0o600
    state.unlink()
    with pytest.raises(RefusedError, match="release 2 was accepted"):
        install(made / "1", place, root=root)
    install(made / "2", place, root=root)
    assert state.exists()


def test_a_model_that_answers_otherwise_is_not_put_in_use(
    place: Path, root: Path, made: Path, key: Path, tmp_path: Path
) -> None:
    install(made / "1", place, root=root)
    wrong = make_release(tmp_path / "wrong", key, 2)
    held = {name: (wrong / name).read_bytes() for name in ("model.onnx", "golden/inputs.npz", "LICENSE")}
    expected = dict(np.load(wrong / "golden/outputs.npz"))
    held["golden/outputs.npz"] = packed(y=expected["y"] * 1.05)
    make_bundle(wrong, key, held, release=2)
    with pytest.raises(RefusedError, match="outputs are wrong: they deviate by 4"):
        install(wrong, place, root=root)
    assert release_in_use(place, root) == 1
    install(made / "2", place, root=root)  # the number was not used up
    assert release_in_use(place, root) == 2


def test_a_model_that_does_not_run_is_not_put_in_use(
    place: Path, root: Path, made: Path, key: Path, tmp_path: Path
) -> None:
    install(made / "1", place, root=root)
    held = {name: (made / "1" / name).read_bytes() for name in ("golden/inputs.npz", "golden/outputs.npz")}
    broken = make_bundle(tmp_path / "broken", key, {"model.onnx": b"no network", **held}, release=2)
    with pytest.raises(RefusedError, match="does not run here"):
        install(broken, place, root=root)
    assert release_in_use(place, root) == 1
    assert install(broken, place, root=root, tried=False)["golden"] is None
    assert rollback("small", place, root=root, only_if_wrong=True)["kept"] is False
    assert release_in_use(place, root) == 1


def test_a_release_that_does_what_it_should_is_not_rolled_back(place: Path, root: Path, made: Path) -> None:
    for number in (1, 2):
        install(made / str(number), place, root=root)
    assert rollback("small", place, root=root, only_if_wrong=True)["kept"] is True
    assert release_in_use(place, root) == 2


def test_without_a_runtime_nothing_is_put_in_use_untried(place: Path, root: Path, made: Path) -> None:
    program = (
        "import sys; sys.modules['onnxruntime'] = None\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from deadweight.targets.errors import TargetError\n"
        "from deadweight.targets.release.install import install\n"
        "try: install(Path(sys.argv[2]), Path(sys.argv[3]), root=Path(sys.argv[4]))\n"
        "except TargetError as error: print(error)\n"
    )
    command = [sys.executable, "-c", program, str(HOUSE), str(made / "1"), str(place), str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "cannot be run on its golden inputs here" in done.stdout, done.stderr
    assert "--untried" in done.stdout
    assert not (place / "small/current").exists()


def test_rollback_goes_back_and_forth(place: Path, root: Path, made: Path) -> None:
    for number in (1, 2):
        install(made / str(number), place, root=root)
    for number in (1, 2):
        rollback("small", place, root=root)
        assert release_in_use(place, root) == number


@pytest.mark.parametrize("name", ["small", "..", "a/b", ""])
def test_there_must_be_something_to_roll_back(tmp_path: Path, root: Path, name: str) -> None:
    (tmp_path / "place").mkdir()
    with pytest.raises(ArtifactError, match="No bundle named"):
        rollback(name, tmp_path / "place", root=root)


def test_there_must_be_something_to_roll_back_to(place: Path, root: Path, made: Path) -> None:
    install(made / "1", place, root=root)
    with pytest.raises(ArtifactError, match="'small' has no version before"):
        rollback("small", place, root=root)


def test_a_version_that_went_bad_on_the_disk_is_not_rolled_back_to(
    place: Path, root: Path, made: Path
) -> None:
    for number in (1, 2):
        install(made / str(number), place, root=root)
    (place / "small/previous/model.onnx").write_text("bad")
    with pytest.raises(RefusedError, match="was changed"):
        rollback("small", place, root=root)
    assert release_in_use(place, root) == 2


def test_only_two_versions_are_kept(place: Path, root: Path, made: Path) -> None:
    for number in (1, 2, 3):
        install(made / str(number), place, root=root)
    kept = [path for path in (place / "small").iterdir() if path.is_dir() and not path.is_symlink()]
    assert len(kept) == 2
    rollback("small", place, root=root)
    assert release_in_use(place, root) == 2


def test_installing_the_same_twice_changes_nothing(place: Path, root: Path, made: Path) -> None:
    assert install(made / "1", place, root=root) == install(made / "1", place, root=root)


def test_a_refused_bundle_leaves_everything_as_it_was(
    place: Path, root: Path, made: Path, tmp_path: Path
) -> None:
    install(made / "1", place, root=root)
    before = sorted(str(path) for path in place.rglob("*"))
    bad = shutil.copytree(made / "2", tmp_path / "bad")
    (bad / "golden/outputs.npz").write_bytes(b"tampered")  # not the first file to be copied
    with pytest.raises(RefusedError):
        install(bad, place, root=root)
    assert sorted(str(path) for path in place.rglob("*")) == before
    assert release_in_use(place, root) == 1


def test_two_installs_do_not_meet(place: Path, root: Path, made: Path) -> None:
    import fcntl

    install(made / "1", place, root=root)
    with (place / "small/.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ArtifactError, match="Another install is running"):
            install(made / "2", place, root=root)
        with pytest.raises(ArtifactError, match="Another install is running"):
            rollback("small", place, root=root)


def test_a_bundle_larger_than_the_space_left_is_refused_before_anything_is_written(
    tmp_path: Path, root: Path, key: Path
) -> None:
    entry = {"sha256": "0" * 64, "bytes": 1 << 60}
    bundle = make_bundle(tmp_path / "huge", key, {"model.onnx": b""}, files={"model.onnx": entry})
    with pytest.raises(ArtifactError, match=r"has .* MB left"):
        install(bundle, tmp_path / "place", root=root)
    assert not list((tmp_path / "place").rglob("model.onnx"))


_FULL = """
import resource, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from pathlib import Path
from deadweight.targets.errors import ArtifactError
from deadweight.targets.release.install import install
source, place, root, most = Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), int(sys.argv[5])
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
try: install(source, place, root=root)
except ArtifactError as error: print(error.what)
"""


@pytest.mark.parametrize("most", [400, 600, 700])
@pytest.mark.parametrize("source", ["2", "1to2"])
def test_a_file_that_cannot_be_written_to_its_end_stops_an_update_and_the_old_release_runs(
    place: Path, root: Path, made: Path, source: str, most: int
) -> None:
    """A limit on file sizes, as a quota has; it may strike in the manifest, a file, or the state."""
    install(made / "1", place, root=root)
    command = [sys.executable, "-c", _FULL, *map(str, (HOUSE, made / source, place, root, most))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "cannot be written" in done.stdout, done.stderr
    assert release_in_use(place, root) == 1
    assert not list((place / "small").glob(".*.part"))
    install(made / source, place, root=root)
    assert release_in_use(place, root) == 2


@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("source", ["2", "1to2"])
def test_a_disk_that_is_full_in_the_middle_of_an_update_leaves_the_old_release(
    place: Path, root: Path, made: Path, source: str
) -> None:
    program = _FULL.replace("resource.setrlimit", "(lambda *_: None)").replace(
        "try: install(source",
        "import shutil; from support.releases import release_in_use\n"
        "install(source.parent / '1', place, root=root)\n"
        "free = shutil.disk_usage(str(place)).free\n"
        "(place / 'ballast').write_bytes(bytes(free - 2 * 4096))\n"
        "shutil.disk_usage = lambda path: type('U', (), {'free': 1 << 40})  # it fills up after the look\n"
        "try: install(source",
    )
    program += "print(release_in_use(place, root))\n(place / 'ballast').unlink()\n"
    program += "install(source, place, root=root)\nprint(release_in_use(place, root))\n"
    place.mkdir()
    mount = f'mount -t tmpfs -o size=256k none {place} && exec "$@"'
    inside = [sys.executable, "-c", program, *map(str, (HOUSE, made / source, place, root, 0))]
    command = ["unshare", "-m", "sh", "-c", mount, "sh", *inside]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()[:200]}")
    assert "No space left on device" in done.stdout, done.stdout + done.stderr
    assert done.stdout.split()[-2:] == ["1", "2"], done.stdout + done.stderr


# Power lost. A process that has all imported forks one child a trial, which is killed; ONNX Runtime is first
# used after the fork. `step N` kills before the Nth change to the place, `after S` some seconds in.
_KILLED = """
import os, shutil, signal, sys, time
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests"]
from pathlib import Path
import numpy, onnxruntime
from deadweight.targets import coded
from deadweight.targets.engines import build
from deadweight.targets.release import patch, self_test
from deadweight.targets.runtimes import infer, ort
from deadweight.targets.release.install import install
source, place, root = map(Path, sys.argv[2:5])
CHANGES = ("open", "os.rename", "os.symlink", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
def watched(last):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in CHANGES and str(place) in str(arguments[0]) + str(arguments[1:2]):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)
    return hook
print("ready", flush=True)
for line in sys.stdin:
    kind, moment = line.split()
    child = os.fork()
    if child == 0:
        if kind == "step":
            sys.addaudithook(watched(int(moment)))
        install(source, place, root=root)
        os._exit(0)
    if kind == "after":
        time.sleep(float(moment))
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Killer:
    """Runs installs of one source, each killed at its moment."""

    def __init__(self, source: Path, place: Path, root: Path) -> None:
        command = [sys.executable, "-c", _KILLED, *map(str, (HOUSE, source, place, root))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def at(self, moment: str) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{moment}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def restored(place: Path, before: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(before, place, symlinks=True)


@pytest.mark.parametrize("source", ["2to3", pytest.param("3", marks=pytest.mark.slow)])
def test_an_update_killed_before_every_single_step_leaves_a_release_that_runs_and_is_finished_by_repeating_it(
    place: Path, root: Path, made: Path, tmp_path: Path, source: str
) -> None:
    for number in (1, 2):
        install(made / str(number), place, root=root)
    shutil.copytree(place, tmp_path / "before", symlinks=True)
    killer = Killer(made / source, place, root)
    seen, code = [], -1
    try:
        for step in range(1, 200):
            restored(place, tmp_path / "before")
            code = killer.at(f"step {step}")
            seen.append(release_in_use(place, root))
            install(made / source, place, root=root)
            assert release_in_use(place, root) == 3
            assert not list(place.rglob(".*.part"))
            if code == 0:
                break
            assert code == -signal.SIGKILL
    finally:
        killer.close()
    assert code == 0, "it was never left alone"
    assert len(seen) > 20
    assert seen == sorted(seen)  # before the swap the old one, afterwards the new one
    assert set(seen) == {2, 3}


def killed_at(shares: list[float], place: Path, root: Path, made: Path, tmp_path: Path) -> list[int]:
    """Which release was in use after each kill, at these shares of the time that an install takes here."""
    for number in (1, 2):
        install(made / str(number), place, root=root)
    shutil.copytree(place, tmp_path / "before", symlinks=True)
    seen = []
    for source in ("3", "2to3"):
        killer = Killer(made / source, place, root)
        try:
            started = time.perf_counter()
            assert killer.at("step 1000000") == 0
            usual_s = time.perf_counter() - started
            for share in shares[:: 1 if source == "3" else -1]:
                restored(place, tmp_path / "before")
                killer.at(f"after {share * usual_s}")
                seen.append(release_in_use(place, root))
                install(made / source, place, root=root)
                assert release_in_use(place, root) == 3
        finally:
            killer.close()
    return seen


def test_an_update_killed_at_random_moments_leaves_a_release_that_runs(
    place: Path, root: Path, made: Path, tmp_path: Path
) -> None:
    shares = np.random.default_rng(0).uniform(0, 1.3, 3).tolist()
    assert set(killed_at(shares, place, root, made, tmp_path)) <= {2, 3}


@pytest.mark.slow
def test_an_update_killed_at_a_hundred_random_moments_leaves_a_release_that_runs(
    place: Path, root: Path, made: Path, tmp_path: Path
) -> None:
    shares = np.random.default_rng(1).uniform(0, 1.5, 50).tolist()
    seen = killed_at(shares, place, root, made, tmp_path)
    assert len(seen) == 100
    assert set(seen) == {2, 3}, "the moments must lie on both sides of the swap"


def test_what_was_never_a_release_is_refused(place: Path, root: Path, tmp_path: Path, key: Path) -> None:
    plain = make_bundle(tmp_path / "plain", key, FILES)  # signed, and its model is no network
    for source in (plain, tmp_path / "none", tmp_path / "file"):
        (tmp_path / "file").write_bytes(b"PK\x03\x04 a zip")
        with pytest.raises(DeadweightError):
            install(source, place, root=root)
    assert not (place / "small/current").exists()
