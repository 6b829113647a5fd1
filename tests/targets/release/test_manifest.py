"""What a manifest may say. That it is only read once it was found signed is shown in test_trust.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.releases import make_bundle

from deadweight.targets.errors import RefusedError
from deadweight.targets.release.manifest import Entry, check_content, check_name, parsed


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((make_bundle(tmp_path / "b", None) / "manifest.json").read_text()))


def refusal(manifest: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        parsed(json.dumps(manifest).encode())
    assert caught.value.cure
    return str(caught.value)


def test_a_manifest_as_it_was_written_is_taken(manifest: dict[str, Any]) -> None:
    files = parsed(json.dumps(manifest).encode()).files
    assert files["model.onnx"].bytes == len(b"not run by these tests")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("release", 0, "a release number from 1"),
        ("release", True, "release is True"),
        ("release", "7", "release is '7'"),
        ("release", 1.5, "release is 1.5"),
        ("release", 1 << 60, "a release number from 1"),
        ("made_at", None, "made_at is None"),
        ("made_at", "2026-02-30T00:00:00+00:00", "a time for made_at"),
        ("made_at", "2026-01-01T00:00:00", "a time for made_at"),
        ("expires", "never", "a time for expires"),
        ("expires", 0, "expires is 0"),
        ("name", "a/b", "a plain name"),
        ("name", ".hidden", "a plain name"),
        ("name", None, "name is None"),
        ("model", 1, "model is 1"),
        ("files", [], "files is []"),
        ("board", None, "board is None, not a table"),
        ("golden", {"inputs": "a", "outputs": "b"}, "golden misses tolerance"),
        ("golden", {"inputs": "a", "outputs": "b", "tolerance": -1}, "a tolerance from 0 to 1"),
        ("golden", {"inputs": "a", "outputs": "b", "tolerance": None}, "tolerance is None"),
        ("files", {"a": {"sha256": "0"}}, "misses bytes"),
        ("files", {"a": None}, "is None, not a table"),
        ("files", {"a": {"sha256": "0", "bytes": -1}}, "a size for a"),
        ("files", {"a": {"sha256": "0", "bytes": "many"}}, "bytes is 'many'"),
        ("files", {"manifest.json": {"sha256": "0", "bytes": 1}}, "lists manifest.json itself"),
        ("extra", 1, "has the unknown key extra"),
    ],
)
def test_what_it_says_wrongly_is_named(manifest: dict[str, Any], key: str, value: Any, why: str) -> None:
    assert why in refusal({**manifest, key: value})


def test_a_tolerance_that_is_no_number_is_refused(manifest: dict[str, Any]) -> None:
    manifest["golden"]["tolerance"] = float("nan")
    assert "a tolerance from 0 to 1" in refusal(manifest)


def test_every_key_must_be_there(manifest: dict[str, Any]) -> None:
    for key in manifest:
        wrong = refusal({name: value for name, value in manifest.items() if name != key})
        assert f"misses {key}" in wrong or "has the schema None" in wrong


def test_plain_names_are_taken() -> None:
    for name in ("model.onnx", "golden/inputs.npz", "LICENSE", "a b.txt", "ärger.md", "v1..2"):
        assert check_name(name) == name


def test_size_and_hash_must_both_be_right() -> None:
    entry = Entry("0" * 64, 4)
    check_content("a", entry, size=4, sha256="0" * 64, head=b"abcd")
    for size, sha256 in ((5, "0" * 64), (4, "1" * 64)):
        with pytest.raises(RefusedError, match="was changed after it was signed"):
            check_content("a", entry, size=size, sha256=sha256, head=b"abcd")
