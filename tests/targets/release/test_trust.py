"""Bundles that were tampered with, each refused for the right reason; keys and signatures are real."""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.boards import unpack
from support.releases import FILES, make_bundle, make_key, sign, trust

from deadweight.targets.errors import RefusedError
from deadweight.targets.release.trust import open_bundle, verify

JETSON = {"compute_capability": "8.7", "tensorrt": "10.16.2.10"}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def root(tmp_path: Path, key: Path) -> Path:
    """A machine that trusts the key."""
    trust(key, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def bundle(tmp_path: Path, key: Path) -> Path:
    return make_bundle(tmp_path / "bundle", key)


def refusal(bundle: Path, root: Path) -> str:
    with pytest.raises(RefusedError) as caught:
        verify(bundle, root=root)
    assert caught.value.cure
    return str(caught.value)


def test_a_bundle_as_it_was_signed_is_taken_and_its_signer_named(bundle: Path, root: Path) -> None:
    checked = verify(bundle, root=root)
    assert checked.signed.signer == "release"
    assert {name: checked.read(name) for name in checked.files} == FILES


def flip(path: Path, at: int, bit: int) -> bytes:
    """Changes one byte and returns what the file held."""
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :])
    return data


def refused_at(bundle: Path, root: Path, path: Path, at: int, bit: int) -> bool:
    data = flip(path, at, bit)
    try:
        verify(bundle, root=root)
    except RefusedError:
        return True
    finally:
        path.write_bytes(data)
    return False


def places(bundle: Path) -> list[tuple[Path, int]]:
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    return [(path, at) for path in files for at in range(path.stat().st_size)]


def test_flips_all_over_a_bundle_are_refused(bundle: Path, root: Path) -> None:
    for index, (path, at) in enumerate(places(bundle)[::29]):
        assert refused_at(bundle, root, path, at, index % 8), (path.name, at)


@pytest.mark.slow
def test_every_single_byte_flip_is_refused(bundle: Path, root: Path) -> None:
    tried = places(bundle)
    assert len(tried) > 800
    for path, at in tried:
        assert refused_at(bundle, root, path, at, at % 8), (path.name, at)


@pytest.mark.slow
def test_every_bit_of_the_signature_counts(bundle: Path, root: Path) -> None:
    signature = bundle / "manifest.json.sig"
    for at in range(signature.stat().st_size):
        for bit in range(8):
            assert refused_at(bundle, root, signature, at, bit), (at, bit)


def test_blanks_put_into_a_signature_are_refused_though_ssh_keygen_takes_them(
    bundle: Path, root: Path
) -> None:
    signature = bundle / "manifest.json.sig"
    signature.write_bytes(signature.read_bytes().replace(b"\n", b"\n ", 1))
    command = ["ssh-keygen", "-Y", "check-novalidate", "-n", "deadweight-bundle", "-s", str(signature)]
    with (bundle / "manifest.json").open("rb") as manifest:
        assert subprocess.run(command, stdin=manifest, capture_output=True, check=False).returncode == 0
    assert "was changed or truncated" in refusal(bundle, root)


def test_a_bundle_without_a_signature_is_refused(tmp_path: Path, root: Path) -> None:
    assert "is not signed" in refusal(make_bundle(tmp_path / "unsigned", None), root)


def test_an_engine_without_a_signature_is_refused_as_code(tmp_path: Path, root: Path) -> None:
    result = refusal(make_bundle(tmp_path / "unsigned", None, {**FILES, "model.engine": b"ftrt"}), root)
    assert "An engine is code, and model.engine is an engine." in result


def test_a_key_that_is_not_trusted_is_named_by_its_fingerprint(tmp_path: Path, root: Path) -> None:
    other = make_key(tmp_path / "other", "mallory")
    shown = subprocess.run(["ssh-keygen", "-lf", str(other)], capture_output=True, text=True, check=True)
    result = refusal(make_bundle(tmp_path / "theirs", other), root)
    assert f"signed by {shown.stdout.split()[1]}, not trusted here" in result


def test_a_signature_made_for_another_purpose_is_refused(bundle: Path, root: Path, key: Path) -> None:
    sign(bundle / "manifest.json", key, namespace="file")
    assert "signed for another purpose" in refusal(bundle, root)


def test_a_key_trusted_for_another_purpose_is_refused(bundle: Path, tmp_path: Path, key: Path) -> None:
    trust(key, tmp_path / "other", options='namespaces="git"')
    assert "not trusted here" in refusal(bundle, tmp_path / "other")


def test_a_key_whose_time_is_over_is_refused(bundle: Path, tmp_path: Path, key: Path) -> None:
    trust(key, tmp_path / "other", options='namespaces="deadweight-bundle",valid-before="20200101"')
    assert "or no longer" in refusal(bundle, tmp_path / "other")


def test_a_machine_that_trusts_nobody_says_so(bundle: Path, tmp_path: Path) -> None:
    assert "trusts no signer yet" in refusal(bundle, tmp_path / "empty")


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_a_list_of_signers_that_others_can_write_is_not_believed(bundle: Path, root: Path, mode: int) -> None:
    (root / "etc/deadweight/allowed_signers").chmod(mode)
    assert "can be changed by users other than root" in refusal(bundle, root)


def test_nor_one_in_a_directory_that_others_can_write(bundle: Path, root: Path) -> None:
    (root / "etc/deadweight").chmod(0o777)
    assert "can be changed by users other than root" in refusal(bundle, root)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_nor_one_that_belongs_to_another_user(bundle: Path, root: Path) -> None:
    os.chown(root / "etc/deadweight/allowed_signers", 65534, 65534)
    assert "can be changed by users other than root" in refusal(bundle, root)


def test_a_file_that_nobody_signed_is_refused(bundle: Path, root: Path) -> None:
    (bundle / "golden/more.npz").write_bytes(b"")
    assert "files that were not signed: golden/more.npz" in refusal(bundle, root)


def test_a_missing_file_is_refused(bundle: Path, root: Path) -> None:
    (bundle / "model.onnx").unlink()
    assert "missing: model.onnx" in refusal(bundle, root)


def test_a_link_is_refused_wherever_it_leads(bundle: Path, root: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to("golden/inputs.npz")
    assert "model.onnx is a link" in refusal(bundle, root)


def test_a_directory_that_is_a_link_is_refused(bundle: Path, root: Path, tmp_path: Path) -> None:
    (bundle / "golden").rename(tmp_path / "elsewhere")
    (bundle / "golden").symlink_to(tmp_path / "elsewhere")
    assert "golden is a link" in refusal(bundle, root)


def test_a_pipe_is_refused_and_does_not_block(bundle: Path, root: Path) -> None:
    os.mkfifo(bundle / "pipe")
    assert "a device or a pipe" in refusal(bundle, root)


def test_a_socket_is_refused(bundle: Path, root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(bundle / "s"))
        assert "a device or a pipe" in refusal(bundle, root)


@pytest.mark.parametrize(
    "name", ["../escaped", "a/../../escaped", "/etc/passwd", "a//b", "./a", "", "a\\b", "a\nb", "a\0b"]
)
def test_a_name_that_leads_out_of_the_bundle_is_refused(
    tmp_path: Path, root: Path, key: Path, name: str
) -> None:
    entry = {"sha256": hashlib.sha256(b"").hexdigest(), "bytes": 0}
    place = make_bundle(tmp_path / "evil", key, {}, files={name: entry})
    assert "not a plain path inside it" in refusal(place, root)


@pytest.mark.parametrize("name", ["plugin.so", "lib/libplugin.so.1", "hook.py", "run.sh", "weights.pt"])
def test_code_is_refused_by_its_name_even_with_a_signature(
    tmp_path: Path, root: Path, key: Path, name: str
) -> None:
    assert "is code" in refusal(make_bundle(tmp_path / "code", key, {**FILES, name: b"x"}), root)


@pytest.mark.parametrize("head", [b"\x7fELF\x02", b"MZ\x90", b"#!/bin/sh"])
def test_code_is_refused_by_how_it_begins(tmp_path: Path, root: Path, key: Path, head: bytes) -> None:
    assert "notes.txt is code" in refusal(
        make_bundle(tmp_path / "code", key, {**FILES, "notes.txt": head}), root
    )


def test_a_manifest_of_another_schema_says_so(tmp_path: Path, root: Path, key: Path) -> None:
    assert "has the schema 3" in refusal(make_bundle(tmp_path / "new", key, schema=3), root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "has the schema None"),
        ("{", "is not JSON"),
        ('{"schema": 2, "schema": 2}', "a key comes twice"),
        ('{"schema": 2}', "misses name"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_a_signed_manifest_that_makes_no_sense_is_refused(
    bundle: Path, root: Path, key: Path, text: str, message: str
) -> None:
    (bundle / "manifest.json").write_text(text)
    sign(bundle / "manifest.json", key)
    assert message in refusal(bundle, root)


def test_a_name_that_would_be_a_path_on_the_board_is_refused(tmp_path: Path, root: Path, key: Path) -> None:
    assert "does not have a plain name" in refusal(
        make_bundle(tmp_path / "evil", key, name="../../etc"), root
    )


def test_an_empty_folder_is_no_bundle(tmp_path: Path, root: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is not a bundle" in refusal(tmp_path / "empty", root)
    assert "cannot be read" in refusal(tmp_path / "none", root)


@pytest.mark.parametrize(
    ("board", "wanted", "message"),
    [
        ("orin_nano_super_jp72", JETSON, None),
        ("agx_thor_jp70", JETSON, "compute capability 8.7), but this is NVIDIA Jetson AGX Thor"),
        ("orin_nx_jp6", JETSON, "for TensorRT 10.16.2.10; this board has 10.3.0"),
        ("orin_nano_jp6_new", JETSON, "this board has none"),
        (None, JETSON, "this machine is not a Jetson"),
    ],
)
def test_a_bundle_is_for_its_board(
    tmp_path: Path, root: Path, key: Path, board: str | None, wanted: dict[str, str], message: str | None
) -> None:
    if board is not None:
        unpack(board, root)
    place = make_bundle(
        tmp_path / "engine", key, {**FILES, "model.engine": b"ftrt"}, board=wanted, target="orin-nano-8gb"
    )
    if message is None:
        assert verify(place, root=root).signed.signer == "release"
    else:
        assert message in refusal(place, root)


def test_an_engine_cannot_be_for_any_board(tmp_path: Path, root: Path, key: Path) -> None:
    place = make_bundle(tmp_path / "engine", key, {**FILES, "model.engine": b"ftrt"})
    assert "this machine is not a Jetson" in refusal(place, root)


def test_a_patch_release_matters_to_an_engine_and_not_to_a_network(
    tmp_path: Path, root: Path, key: Path
) -> None:
    unpack("orin_nano_super_jp72", root)
    wanted = {**JETSON, "tensorrt": "10.16.1.11"}
    assert verify(make_bundle(tmp_path / "network", key, board=wanted), root=root)
    engine = make_bundle(tmp_path / "engine", key, {**FILES, "a.plan": b"ftrt"}, board=wanted)
    assert "for TensorRT 10.16.1.11" in refusal(engine, root)


def test_a_file_swapped_after_the_check_is_not_loaded(bundle: Path, root: Path) -> None:
    checked = verify(bundle, root=root)
    (bundle / "model.onnx").write_bytes(b"swapped")
    with pytest.raises(RefusedError, match="was changed after it was signed"):
        checked.read("model.onnx")


def test_what_a_runtime_is_given_is_what_was_checked_and_nobody_can_change_it(
    bundle: Path, root: Path
) -> None:
    checked = open_bundle(bundle, root=root)
    with checked.sealed("model.onnx") as path:
        (bundle / "model.onnx").write_bytes(b"swapped")
        assert path.read_bytes() == FILES["model.onnx"]
        handle = os.open(path, os.O_RDWR)
        with pytest.raises(PermissionError):
            os.write(handle, b"swapped")
        os.close(handle)
        program = "import sys; print(open(sys.argv[1], 'rb').read() == sys.argv[2].encode())"
        command = [sys.executable, "-c", program, str(path), FILES["model.onnx"].decode()]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


def test_a_list_of_signers_can_be_named_by_hand(bundle: Path, tmp_path: Path, key: Path) -> None:
    signers = trust(key, tmp_path / "elsewhere")
    assert verify(bundle, root=tmp_path / "empty", signers=signers).signed.signer == "release"


@pytest.mark.slow
@pytest.mark.parametrize("size", [250_000, 64 << 20])
def test_verifying_takes_at_most_three_times_what_sha256sum_takes(
    tmp_path: Path, root: Path, key: Path, size: int
) -> None:
    files = {f"part{index}.bin": os.urandom(size) for index in range(4)}
    place = make_bundle(tmp_path / "large", key, files)

    def best(action: Callable[[], object]) -> float:
        taken = []
        for _ in range(5):
            before = time.perf_counter()
            action()
            taken.append(time.perf_counter() - before)
        return min(taken)

    names = [str(place / name) for name in files]
    plain = best(lambda: subprocess.run(["sha256sum", *names], check=True, capture_output=True))
    assert best(lambda: verify(place, root=root)) < 3 * plain
