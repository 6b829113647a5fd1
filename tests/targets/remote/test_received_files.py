"""What a board takes from a copy, and what it does not."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import time
from pathlib import Path

import pytest

from deadweight.targets.errors import ArtifactError
from deadweight.targets.remote.received_files import held, receive

DATA = b"weights" * 1000
HASH = hashlib.sha256(DATA).hexdigest()


def stream(*members: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return io.BytesIO(made.getvalue())


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
    return info, data


def test_a_file_arrives_in_pieces_and_is_found_under_its_name(tmp_path: Path) -> None:
    wanted = [(HASH, "model.onnx", len(DATA))]
    assert held(wanted, tmp_path)["bytes"] == {HASH: 0}
    sizes = {HASH: len(DATA)}
    assert receive(stream(member(f"{HASH}@0", DATA[:3000])), sizes, tmp_path) == []
    assert held(wanted, tmp_path)["bytes"] == {HASH: 3000}
    assert receive(stream(member(f"{HASH}@3000", DATA[3000:])), sizes, tmp_path) == [HASH]
    path = Path(held(wanted, tmp_path)["paths"][f"{HASH}/model.onnx"])
    assert path.read_bytes() == DATA
    assert path.name == "model.onnx"


def test_two_copies_of_one_file_at_once_do_no_harm(tmp_path: Path) -> None:
    sizes = {HASH: len(DATA)}
    receive(stream(member(f"{HASH}@0", DATA[:5000])), sizes, tmp_path)
    receive(stream(member(f"{HASH}@0", DATA[:2000])), sizes, tmp_path)  # a slow one that started earlier
    assert receive(stream(member(f"{HASH}@5000", DATA[5000:])), sizes, tmp_path) == [HASH]


@pytest.mark.parametrize(
    "evil",
    [
        member("../escaped", DATA),
        member("/tmp/escaped", DATA),
        member(f"../{HASH}@0", DATA),
        member(f"{HASH}@0/../../escaped", DATA),
        member(f"{HASH}@0", kind=tarfile.SYMTYPE),
        member(f"{HASH}@0", kind=tarfile.LNKTYPE),
        member(f"{HASH}@0", kind=tarfile.FIFOTYPE),
        member(f"{HASH}@0", kind=tarfile.CHRTYPE),
        member(HASH, DATA),
        member(f"{'0' * 64}@0", DATA),
        member(f"{HASH}@-1", DATA),
    ],
    ids=lambda item: item[0].name[-20:] + repr(item[0].type),
)
def test_a_member_that_nobody_announced_is_not_written(
    tmp_path: Path, evil: tuple[tarfile.TarInfo, bytes]
) -> None:
    place = tmp_path / "cache"
    held([], place)
    with pytest.raises(ArtifactError, match="unexpected member"):
        receive(stream(evil), {HASH: len(DATA)}, place)
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_a_stream_that_is_cut_keeps_what_came(tmp_path: Path) -> None:
    large = os.urandom(400_000)
    sha256 = hashlib.sha256(large).hexdigest()
    whole = stream(member(f"{sha256}@0", large)).getvalue()
    held([], tmp_path)
    with pytest.raises(ArtifactError, match="interrupted"):
        receive(io.BytesIO(whole[:300_000]), {sha256: len(large)}, tmp_path)
    kept = held([(sha256, "a", len(large))], tmp_path)["bytes"][sha256]
    assert 300_000 - 70_000 < kept < 300_000
    receive(stream(member(f"{sha256}@{kept}", large[kept:])), {sha256: len(large)}, tmp_path)
    path = held([(sha256, "a", len(large))], tmp_path)["paths"][f"{sha256}/a"]
    assert Path(path).read_bytes() == large


def test_a_piece_that_leaves_a_hole_is_refused(tmp_path: Path) -> None:
    held([], tmp_path)
    with pytest.raises(ArtifactError, match="piece of the file is missing"):
        receive(stream(member(f"{HASH}@100", DATA[100:])), {HASH: len(DATA)}, tmp_path)


@pytest.mark.parametrize("name", ["..", "", "a/b", "data", "part"])
def test_a_name_that_would_hide_something_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match="cannot be stored"):
        held([(HASH, name, 1)], tmp_path)


def test_what_was_not_used_for_two_weeks_is_forgotten(tmp_path: Path) -> None:
    receive(stream(member(f"{HASH}@0", DATA)), {HASH: len(DATA)}, tmp_path)
    assert held([(HASH, "a", len(DATA))], tmp_path)["paths"]
    place = tmp_path / "files" / HASH
    old = time.time() - 15 * 24 * 3600
    os.utime(place, (old, old))
    assert held([(HASH, "a", len(DATA))], tmp_path)["paths"] == {}


def test_the_cache_is_the_users_alone(tmp_path: Path) -> None:
    held([], tmp_path / "cache")
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_files_of_one_model_are_found_in_one_folder_under_names_that_stay_in_it(tmp_path: Path) -> None:
    receive(stream(member(f"{HASH}@0", DATA)), {HASH: len(DATA)}, tmp_path)
    folder = "f" * 64
    wanted = [(HASH, name, len(DATA), folder) for name in ("model.onnx", "weights/data", "data")]
    paths = [Path(path) for path in held(wanted, tmp_path)["paths"].values()]
    assert [path.relative_to(tmp_path / "files" / folder).as_posix() for path in paths] == [
        "model.onnx",
        "weights/data",
        "data",
    ]
    assert {path.stat().st_ino for path in paths} == {(tmp_path / "files" / HASH / "data").stat().st_ino}
    for name in ("../escaped", "a/../../escaped", "/escaped", "a//b", ""):
        with pytest.raises(ArtifactError, match="cannot be stored"):
            held([(HASH, name, len(DATA), folder)], tmp_path)
    with pytest.raises(ArtifactError, match="is not a SHA-256"):
        held([(HASH, "model.onnx", len(DATA), "../escaped")], tmp_path)
