"""Update files that were tampered with: refused for the right reason, or they give what was signed."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.boards import unpack
from support.releases import make_bundle, make_key, make_release, release_in_use, sign, trust

from deadweight.export.release.delta import delta, difference
from deadweight.targets.errors import RefusedError
from deadweight.targets.release.install import install
from deadweight.targets.release.patch import MAGIC, added, decoded, open_patch

HEAD = len(MAGIC) + 32
Instructions = dict[str, Any]


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Path:
    """A machine with release 1 in use: `root` and `place`; patches and a whole update to release 2 beside."""
    place = tmp_path_factory.mktemp("board")
    trust(key, place / "root")
    for number in (1, 2):
        make_release(place / str(number), key, number)
    install(place / "1", place / "place", root=place / "root")
    delta(place / "1", place / "2", place / "patch")
    delta(None, place / "2", place / "whole")
    return place


def refused(board: Path, source: Path) -> str:
    """Why an update is refused; release 1 must still be in use, and run."""
    with pytest.raises(RefusedError) as caught:
        install(source, board / "place", root=board / "root")
    assert caught.value.cure
    assert release_in_use(board / "place", board / "root") == 1
    assert not list((board / "place/small").glob(".*.part"))
    return str(caught.value)


def framed(data: bytes) -> bytes:
    packed = zlib.compress(data)
    return struct.pack("<I", len(packed)) + packed


def opened(path: Path) -> tuple[bytes, bytes, Instructions, bytes]:
    """Manifest, signature, instructions and sections of an update file."""
    data, at, parts = path.read_bytes(), HEAD, []
    for _ in range(3):
        (size,) = struct.unpack("<I", data[at : at + 4])
        parts.append(zlib.decompress(data[at + 4 : at + 4 + size]))
        at += 4 + size
    return parts[0], parts[1], json.loads(parts[2]), data[at:]


def closed(path: Path, manifest: bytes, signature: bytes, value: Any, sections: bytes) -> Path:
    """An update file of these parts whose own hash is right: what an attacker can make."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    body = framed(manifest) + framed(signature) + framed(text) + sections
    path.write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
    return path


def changed(board: Path, where: Path, change: Callable[[Instructions], object], name: str = "patch") -> Path:
    """The update with other instructions."""
    manifest, signature, value, sections = opened(board / name)
    change(value)
    return closed(where / "forged", manifest, signature, value, sections)


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["patch", "whole"])
def test_every_flipped_byte_is_refused(board: Path, tmp_path: Path, name: str, step: int) -> None:
    data = (board / name).read_bytes()
    assert len(data) > 1000
    flipped = tmp_path / "flipped"
    for at in range(0, len(data), step):
        flipped.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])
        with pytest.raises(RefusedError, match="damaged" if at >= len(MAGIC) else "neither"):
            open_patch(flipped, root=board / "root")


def forged(board: Path, where: Path, name: str, step: int) -> None:
    """Flips with the file's own hash put right: what comes out is what was signed, or it is refused."""
    data = (board / name).read_bytes()
    base = install(board / "1", board / "place", root=board / "root")["version"]
    for at in range(HEAD, len(data), step):
        body = data[HEAD:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        (where / "forged").write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
        try:
            patch = open_patch(where / "forged", root=board / "root")
            assert install(where / "forged", where / "place", root=board / "root")["version"] != base
            assert patch.signed.manifest.release == 2
            release_in_use(where / "place", board / "root")
        except RefusedError:
            assert not (where / "place/small/current").exists()
        shutil.rmtree(where / "place", ignore_errors=True)
    assert release_in_use(board / "place", board / "root") == 1


def test_flips_by_an_attacker_who_mends_the_hash_are_refused_or_do_nothing(
    board: Path, tmp_path: Path
) -> None:
    forged(board, tmp_path, "whole", 97)


@pytest.mark.slow
def test_every_flip_by_an_attacker_who_mends_the_hash_is_refused_or_does_nothing(
    board: Path, tmp_path: Path
) -> None:
    forged(board, tmp_path, "whole", 1)


@pytest.mark.parametrize("kept", [0, 5, 20, HEAD, HEAD + 50, -1])
def test_a_file_that_was_cut_short_is_refused(board: Path, tmp_path: Path, kept: int) -> None:
    (tmp_path / "cut").write_bytes((board / "patch").read_bytes()[:kept])
    refused(board, tmp_path / "cut")


def test_what_is_behind_the_end_is_refused(board: Path, tmp_path: Path) -> None:
    manifest, signature, value, sections = opened(board / "patch")
    assert "does not end where the file does" in refused(
        board, closed(tmp_path / "more", manifest, signature, value, sections + b"more")
    )


def test_a_version_of_the_format_that_is_not_known_is_refused(board: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"DWPATCH\x03" + (board / "patch").read_bytes()[8:])
    assert "of this version" in refused(board, tmp_path / "new")


def test_files_that_change_places_are_refused(board: Path, tmp_path: Path) -> None:
    def swap(value: Instructions) -> None:
        files = value["files"]
        files["golden/inputs.npz"], files["LICENSE"] = files["LICENSE"], files["golden/inputs.npz"]

    assert "the signed size" in refused(board, changed(board, tmp_path, swap))


def test_a_file_copied_from_another_of_its_size_is_refused(board: Path, tmp_path: Path) -> None:
    def elsewhere(value: Instructions) -> None:
        steps = [["copy", 200, "model.onnx", 0], ["copy", size - 200, "golden/inputs.npz", 0]]
        value["files"]["golden/inputs.npz"] = ["xz", 0, steps]

    size = opened(board / "patch")[2]["files"]["golden/inputs.npz"][2][0][1]
    assert "was changed after it was signed" in refused(board, changed(board, tmp_path, elsewhere))


def steps(value: Instructions, *steps: list[Any]) -> None:
    value["files"]["LICENSE"] = ["xz", 0, steps]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda value: value["files"].pop("LICENSE"), "are not those that were signed"),
        (lambda value: value["files"].update(more=[]), "are not those that were signed"),
        (lambda value: value["files"].update({"../../escaped": []}), "are not those that were signed"),
        (lambda value: value["files"].update({"/etc/passwd": []}), "are not those that were signed"),
        (lambda value: value["files"].update(LICENSE=["xz", 0, []]), "the signed size"),
        (lambda value: steps(value, ["copy", 1 << 40, "LICENSE", 0]), "the signed size"),
        (lambda value: steps(value, ["run", 220, "LICENSE", 0]), "an unknown form"),
        (lambda value: steps(value, ["take", -1]), "an unknown form"),
        (lambda value: steps(value, ["take", 220, 1]), "an unknown form"),
        (lambda value: steps(value, ["copy", 220, "LICENSE", -5]), "an unknown form"),
        (lambda value: steps(value, ["copy", 0, "LICENSE", 0]), "an unknown form"),
        (lambda value: steps(value, ["copy", 220, "LICENSE", 0, 1]), "an unknown form"),
        (lambda value: steps(value, ["add", 220, "LICENSE", 0, 3]), "an unknown form"),
        (lambda value: value["files"].update(LICENSE="copy"), "too many values"),
        (lambda value: value.pop("files"), "'files'"),
        (lambda value: value["files"]["LICENSE"].__setitem__(0, "pickle"), "an unknown form"),
        (lambda value: value["files"]["LICENSE"].__setitem__(1, 1 << 50), "does not end where"),
        (lambda value: value.update(base="../1"), "is not a hash"),
    ],
)
def test_instructions_that_were_tampered_with_are_refused(
    board: Path, tmp_path: Path, change: Callable[[Instructions], object], why: str
) -> None:
    assert why in refused(board, changed(board, tmp_path, change))


@pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "golden/../LICENSE", "manifest.json"])
def test_nothing_outside_of_the_base_is_copied(board: Path, tmp_path: Path, name: str) -> None:
    """Not even the base's own manifest: it is not among what it lists."""
    size = opened(board / "patch")[2]["files"]["LICENSE"][2][0][1]
    forged = changed(board, tmp_path, lambda value: steps(value, ["copy", size, name, 0]))
    assert "is not in the bundle" in refused(board, forged)


def test_a_step_beyond_the_end_of_its_source_is_refused(board: Path, tmp_path: Path) -> None:
    size = opened(board / "patch")[2]["files"]["LICENSE"][2][0][1]
    beyond = changed(board, tmp_path, lambda value: steps(value, ["copy", size, "LICENSE", 1]))
    assert "reads past the end" in refused(board, beyond)
    more = changed(board, tmp_path, lambda value: steps(value, ["take", size]))
    assert "are missing at its end" in refused(board, more)


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{", b"[" * 100_000, b'"text"', b"\xff"])
def test_instructions_that_are_none_are_refused(board: Path, tmp_path: Path, text: bytes) -> None:
    manifest, signature, _, sections = opened(board / "patch")
    assert "The update file is invalid" in refused(
        board, closed(tmp_path / "forged", manifest, signature, text, sections)
    )


def test_a_head_that_unpacks_to_a_thousandfold_is_refused_before_it_is_in_memory(
    board: Path, tmp_path: Path
) -> None:
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 24)) for _ in range(16)) + packer.flush()
    assert len(bomb) < 1 << 20  # for 256 MB
    manifest, signature, _, _ = opened(board / "patch")
    for first in (framed(manifest) + framed(signature), b""):
        body = first + struct.pack("<I", len(bomb)) + bomb
        (tmp_path / "bomb").write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
        assert "incomplete or too large" in refused(board, tmp_path / "bomb")


def test_what_unpacks_to_more_than_was_signed_is_refused_before_it_is_in_memory(
    board: Path, tmp_path: Path
) -> None:
    import resource

    manifest, signature, value, _ = opened(board / "whole")
    bomb = lzma.compress(bytes(100 << 20), preset=0)
    for one in value["files"].values():
        one[1] = 0
    first = value["files"][min(value["files"])]
    first[:2] = ["xz", len(bomb)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    forged = closed(tmp_path / "bomb", manifest, signature, value, bomb)
    assert "does not end where it should" in refused(board, forged)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # kilobytes


def test_what_asks_for_much_memory_to_unpack_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 28}]
    data = lzma.compress(bytes(1000), filters=filters, preset=None)
    with pytest.raises(RefusedError, match="damaged"):
        decoded("xz", data, 1000)


@pytest.mark.parametrize("coder", ["xz", "dwz"])
def test_noise_in_place_of_what_is_sent_is_refused(coder: str) -> None:
    generator = np.random.default_rng(0)
    for size in (0, 1, 7, 8, 9, 64, 500):
        with pytest.raises(RefusedError):
            decoded(coder, generator.bytes(size), 1000)


def test_a_manifest_that_somebody_else_signed_is_refused(board: Path, tmp_path: Path) -> None:
    mallory = make_key(tmp_path / "keys", "mallory")
    other = make_release(tmp_path / "2", mallory, 2)
    delta(board / "1", other, tmp_path / "theirs")
    assert "not trusted here" in refused(board, tmp_path / "theirs")


def test_a_manifest_that_nobody_signed_is_refused(board: Path, tmp_path: Path) -> None:
    manifest, _, value, sections = opened(board / "patch")
    forged = closed(tmp_path / "forged", manifest, b"", value, sections)
    assert "was changed or truncated" in refused(board, forged)


def test_the_signature_of_another_release_does_not_fit(board: Path, tmp_path: Path) -> None:
    manifest, _, value, sections = opened(board / "patch")
    signature = (board / "1/manifest.json.sig").read_bytes()
    forged = closed(tmp_path / "forged", manifest, signature, value, sections)
    assert "does not match the manifest" in refused(board, forged)


def test_an_update_for_another_board_is_refused(board: Path, tmp_path: Path, key: Path) -> None:
    wanted = {"compute_capability": "8.7", "tensorrt": "10.16.2.10"}
    other = make_release(tmp_path / "2", key, 2, board=wanted, target="orin-nano-8gb")
    delta(board / "1", other, tmp_path / "theirs")
    assert "this machine is not a Jetson" in refused(board, tmp_path / "theirs")
    root = unpack("orin_nano_super_jp72", tmp_path / "jetson")
    trust(key, root)
    assert open_patch(tmp_path / "theirs", root=root).signed.manifest.release == 2


def test_an_older_release_is_refused_as_a_patch_too(board: Path, tmp_path: Path, key: Path) -> None:
    place = shutil.copytree(board / "place", tmp_path / "place", symlinks=True)
    install(make_release(tmp_path / "5", key, 5), place, root=board / "root")
    for name in ("patch", "whole"):
        with pytest.raises(RefusedError, match="release 5 was accepted here before"):
            install(board / name, place, root=board / "root")
    assert release_in_use(place, board / "root") == 5


def test_an_expired_update_is_refused(board: Path, tmp_path: Path, key: Path) -> None:
    late = make_release(tmp_path / "2", key, 2, expires="2026-01-02T23:59:59+00:00")
    delta(board / "1", late, tmp_path / "late")
    assert "expired at 2026-01-02" in refused(board, tmp_path / "late")


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped"])
def test_names_that_lead_out_are_refused_though_they_were_signed(
    board: Path, tmp_path: Path, key: Path, name: str
) -> None:
    entry = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
    evil = make_bundle(tmp_path / "evil", key, {}, files={name: entry}, release=2)
    manifest, signature = ((evil / each).read_bytes() for each in ("manifest.json", "manifest.json.sig"))
    value = {"base": None, "files": {name: ["xz", 0, []]}}
    forged = closed(tmp_path / "forged", manifest, signature, value, b"")
    assert "not a plain path inside it" in refused(board, forged)


def test_code_is_refused_though_it_was_signed(board: Path, tmp_path: Path, key: Path) -> None:
    evil = make_bundle(tmp_path / "evil", key, {"notes.txt": b"#!/bin/sh\n"}, release=2)
    manifest, signature = ((evil / each).read_bytes() for each in ("manifest.json", "manifest.json.sig"))
    sent = lzma.compress(b"#!/bin/sh\n")
    value = {"base": None, "files": {"notes.txt": ["xz", len(sent), [["take", 10]]]}}
    forged = closed(tmp_path / "forged", manifest, signature, value, sent)
    assert "notes.txt is code" in refused(board, forged)


@pytest.mark.parametrize("kind", ["file", "link", "up", "absolute"])
def test_an_archive_is_not_unpacked(board: Path, tmp_path: Path, kind: str) -> None:
    """An update is no archive, so that nothing of tar's or zip's names and links has to be judged."""
    info = tarfile.TarInfo({"up": "../escaped", "absolute": f"{tmp_path}/escaped"}.get(kind, "escaped"))
    if kind == "link":
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "update.tar", "w") as archive:
        archive.addfile(info, io.BytesIO())
    assert "neither a bundle's directory nor an update file" in refused(board, tmp_path / "update.tar")
    assert not [path for path in tmp_path.parent.rglob("escaped*") if path.is_symlink() or path.is_file()]


def test_a_link_a_pipe_and_a_device_are_refused_and_do_not_block(board: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(board / "patch")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "link", tmp_path / "pipe", Path("/dev/zero")):
        refused(board, path)


def test_a_patch_signed_anew_by_the_right_key_for_the_wrong_purpose_is_refused(
    board: Path, tmp_path: Path, key: Path
) -> None:
    other = shutil.copytree(board / "2", tmp_path / "2")
    sign(other / "manifest.json", key, namespace="file")
    delta(board / "1", other, tmp_path / "wrong")
    assert "for another purpose" in refused(board, tmp_path / "wrong")


@given(
    st.sampled_from([1, 2, 4, 8]).flatmap(
        lambda width: st.tuples(
            st.just(width),
            *[st.lists(st.integers(0, 2 ** (8 * width) - 1), min_size=20, max_size=20)] * 2,
        )
    )
)
def test_a_difference_added_to_the_old_numbers_gives_the_new_ones(
    numbers: tuple[int, list[int], list[int]],
) -> None:
    width, first, second = numbers
    old, new = (np.array(each, f"<u{width}").tobytes() for each in (first, second))
    assert added(old, difference(old, new, width=width), width=width) == new


def test_small_changes_of_int8_weights_become_small_symbols() -> None:
    old = np.array([0, 5, -128, 127, 3], np.int8).tobytes()
    new = np.array([1, 4, 127, -128, 3], np.int8).tobytes()
    assert list(difference(old, new, width=1)) == [2, 1, 1, 2, 0]
