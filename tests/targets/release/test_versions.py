"""Older, twice, expired, and clocks that are wrong."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

from deadweight.targets.errors import RefusedError
from deadweight.targets.release.manifest import Board, Golden, Manifest
from deadweight.targets.release.versions import (
    Accepted,
    check_expiry,
    read_accepted,
    refuse_older,
    write_accepted,
)

FIVE = Accepted(5, "a" * 64)


def manifest(release: int = 6, *, made: str = "2026-07-01", expires: str | None = None) -> Manifest:
    until = None if expires is None else f"{expires}T23:59:59+00:00"
    board, golden = Board(None, None), Golden("inputs.npz", "outputs.npz", 0.01)
    made_at = f"{made}T00:00:00+00:00"
    return Manifest("small", "a test", "x86-cpu", release, made_at, until, board, "model.onnx", golden, {})


def at(day: str) -> float:
    return datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()


def test_what_was_accepted_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    assert read_accepted(tmp_path) is None
    before = os.umask(0)
    try:
        write_accepted(tmp_path, FIVE)
        write_accepted(tmp_path, FIVE)
    finally:
        os.umask(before)
    assert read_accepted(tmp_path) == FIVE
    assert (tmp_path / "accepted.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["accepted.json"]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_state_that_others_can_write_is_not_believed(tmp_path: Path, mode: int) -> None:
    write_accepted(tmp_path, FIVE)
    (tmp_path / "accepted.json").chmod(mode)
    with pytest.raises(RefusedError, match="users other than its owner can change it"):
        read_accepted(tmp_path)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_nor_one_that_belongs_to_another_user(tmp_path: Path) -> None:
    write_accepted(tmp_path, FIVE)
    os.chown(tmp_path / "accepted.json", 65534, 65534)
    with pytest.raises(RefusedError, match="users other than its owner can change it"):
        read_accepted(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        "\xff",
        '{"schema": 2}',
        '{"schema": 1, "release": 5}',
        '{"schema": 1, "release": "5", "sha256": "a", "made_at": "2026-06-01T12:00:00+00:00"}',
        '{"schema": 1, "release": 5, "sha256": 5, "made_at": "2026-06-01T12:00:00+00:00"}',
        '{"schema": 1, "release": 5, "sha256": "a", "surprise": 5}',
        "[" * 100_000,
    ],
)
def test_a_state_that_was_damaged_lets_nothing_in(tmp_path: Path, text: str) -> None:
    write_accepted(tmp_path, FIVE)
    (tmp_path / "accepted.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RefusedError, match="is damaged"):
        read_accepted(tmp_path)


def test_a_state_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    write_accepted(tmp_path, FIVE)
    (tmp_path / "accepted.json").rename(tmp_path / "other.json")
    (tmp_path / "accepted.json").symlink_to("other.json")
    with pytest.raises(RefusedError, match="cannot be read"):
        read_accepted(tmp_path)


def test_a_newer_release_is_taken_and_the_same_one_again() -> None:
    refuse_older(manifest(1), "b" * 64, None)
    refuse_older(manifest(6), "b" * 64, FIVE)
    refuse_older(manifest(5), "a" * 64, FIVE)


def test_an_older_release_is_refused_with_the_way_back() -> None:
    with pytest.raises(RefusedError) as caught:
        refuse_older(manifest(4), "b" * 64, FIVE)
    assert "This is release 4 of small, but release 5 was accepted here before" in caught.value.what
    assert "deadweight rollback small" in caught.value.cure


def test_another_bundle_under_an_accepted_number_is_refused() -> None:
    with pytest.raises(RefusedError, match="Another bundle was accepted as release 5"):
        refuse_older(manifest(5), "b" * 64, FIVE)


def test_expiry_is_held_against_the_clock() -> None:
    assert check_expiry(manifest(expires="2026-08-31"), now_s=at("2026-08-31")) == ""
    with pytest.raises(RefusedError, match=r"expired at 2026-08-31.*it is 2026-09-01"):
        check_expiry(manifest(expires="2026-08-31"), now_s=at("2026-09-01"))
    assert check_expiry(manifest(), now_s=at("2036-01-01")) == ""


def test_a_clock_that_is_behind_what_was_signed_is_said() -> None:
    result = check_expiry(manifest(expires="2026-08-31"), now_s=at("1970-01-01"))
    assert "it is 1970-01-01" in result
    assert "Whether this release has expired" in result
    assert "1970" in check_expiry(manifest(), now_s=at("1970-01-01"))


def test_a_clock_that_is_a_little_behind_the_workstation_is_right_enough() -> None:
    assert check_expiry(manifest(made="2026-07-01"), now_s=at("2026-07-01") - 3600) == ""


def test_a_state_of_an_older_version_with_a_signed_time_is_read(tmp_path: Path) -> None:
    write_accepted(tmp_path, FIVE)
    state = tmp_path / "accepted.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "made_at": "2026-06-01T12:00:00+00:00"}))
    assert read_accepted(tmp_path) == FIVE


def test_what_is_kept_is_plain_json(tmp_path: Path) -> None:
    write_accepted(tmp_path, FIVE)
    assert json.loads((tmp_path / "accepted.json").read_text())["release"] == 5
