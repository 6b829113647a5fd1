import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deadweight.targets.artifact import Artifact, read_json, sha256_of, write_json, write_text, writing
from deadweight.targets.errors import ArtifactError


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"dead weight" * 200_000)
    assert sha256_of(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_artifact_whose_bytes_are_the_recorded_ones_gives_its_path(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    assert Artifact.of(tmp_path / "a.txt").checked() == tmp_path / "a.txt"


def test_one_changed_byte_is_refused_and_the_message_says_how_to_get_it_back(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    artifact = Artifact.of(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text("onf")
    with pytest.raises(ArtifactError, match=r"is damaged: its SHA-256 is \w{12}") as caught:
        artifact.checked()
    assert "Delete it" in caught.value.cure


def test_a_missing_artifact_is_refused(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    artifact = Artifact.of(tmp_path / "a.txt")
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        artifact.checked()


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")

    def interrupted() -> None:
        with writing(tmp_path / "a.txt") as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_says_so_and_keeps_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with (
        pytest.raises(ArtifactError, match="No space left on the disk") as caught,
        writing(tmp_path / "a.txt"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "finished stages are kept" in caught.value.cure
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_place_that_is_a_file_cannot_hold_files(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    with pytest.raises(ArtifactError, match="cannot be written"):
        write_text(tmp_path / "a.txt" / "b.txt", "two")


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "one")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "one"


def test_a_written_file_has_the_rights_any_new_file_has(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("one")
    write_text(tmp_path / "whole", "one")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_process_killed_while_it_writes_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    program = (
        "import itertools, pathlib, sys; from deadweight.targets.artifact import write_text\n"
        "for n in itertools.count(): write_text(pathlib.Path(sys.argv[1]), str(n % 10) * 100_000)\n"
    )
    for wait_s in (0.05, 0.08, 0.13):
        writer = subprocess.Popen([sys.executable, "-c", program, str(path)])
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait_s)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        text = path.read_text()
        assert len(text) == 100_000
        assert len(set(text)) == 1


def test_equal_values_are_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [1.5, None]})
    write_json(tmp_path / "b.json", {"a": [1.5, None], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert read_json(tmp_path / "a.json") == {"a": [1.5, None], "b": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not readable"), ("[1]", "is a list"), ("\udcff", "not readable"), ("[" * 100_000, "too deeply")],
)
def test_json_that_is_no_object_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ArtifactError, match=message):
        read_json(tmp_path / "a.json")


def test_json_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        read_json(tmp_path / "a.json")


def test_half_of_a_character_is_written_as_an_escape(tmp_path: Path) -> None:
    write_text(tmp_path / "a.html", "a layer \ud800")
    assert (tmp_path / "a.html").read_text("utf-8") == "a layer \\ud800"
