"""What a manifest may say. That it is only read once it was found signed is shown in test_trust.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.releases import make_bundle

from deadweight.targets.errors import RefusedError
from deadweight.targets.release.manifest import Entry, check_content, check_name, entries, parsed


@pytest.fixture
def manifest(tmp_path: Path) -> dict[str, Any]:
    return dict(json.loads((make_bundle(tmp_path / "b", None) / "manifest.json").read_text()))


def refusal(manifest: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        entries(parsed(json.dumps(manifest).encode()))
    assert caught.value.cure
    return str(caught.value)


def test_a_manifest_as_it_was_written_is_taken(manifest: dict[str, Any]) -> None:
    files = entries(parsed(json.dumps(manifest).encode()))
    assert files["model.onnx"].size_bytes == len(b"not run by these tests")


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("release", 0, "a release number from 1"),
        ("release", True, "a release number from 1"),
        ("release", "7", "a release number from 1"),
        ("release", 1.5, "a release number from 1"),
        ("release", 1 << 60, "a release number from 1"),
        ("made_at", None, "a time for made_at"),
        ("made_at", "2026-02-30T00:00:00+00:00", "a time for made_at"),
        ("made_at", "2026-01-01T00:00:00", "a time for made_at"),
        ("expires", "never", "a time for expires"),
        ("expires", 0, "a time for expires"),
        ("name", "a/b", "a plain name"),
        ("name", ".hidden", "a plain name"),
        ("name", None, "values of the required types"),
        ("model", 1, "values of the required types"),
        ("files", [], "values of the required types"),
        ("board", None, "the required keys"),
        ("golden", {"inputs": "a", "outputs": "b"}, "the required keys"),
        ("golden", {"inputs": "a", "outputs": "b", "tolerance": -1}, "a tolerance from 0 to 1"),
        ("golden", {"inputs": "a", "outputs": "b", "tolerance": None}, "a tolerance from 0 to 1"),
        ("files", {"a": {"sha256": "0"}}, "an invalid entry for a"),
        ("files", {"a": None}, "an invalid entry for a"),
        ("files", {"a": {"sha256": "0", "bytes": -1}}, "an invalid entry for a"),
        ("files", {"a": {"sha256": "0", "bytes": "many"}}, "an invalid entry for a"),
        ("files", {"manifest.json": {"sha256": "0", "bytes": 1}}, "lists manifest.json itself"),
        ("extra", 1, "the required keys"),
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
        assert "the required keys" in wrong or "has the schema None" in wrong


def test_plain_names_are_taken() -> None:
    for name in ("model.onnx", "golden/inputs.npz", "LICENSE", "a b.txt", "ärger.md", "v1..2"):
        assert check_name(name) == name


def test_size_and_hash_must_both_be_right() -> None:
    entry = Entry("0" * 64, 4)
    check_content("a", entry, size=4, sha256="0" * 64, head=b"abcd")
    for size, sha256 in ((5, "0" * 64), (4, "1" * 64)):
        with pytest.raises(RefusedError, match="was changed after it was signed"):
            check_content("a", entry, size=size, sha256=sha256, head=b"abcd")
