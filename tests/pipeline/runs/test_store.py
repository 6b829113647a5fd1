"""Finished stages in a store: a folder, S3 (a server of moto), ssh (a real sshd); what can be wrong there."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.runs import exit_code, project_of
from support.runs import recipe as recipe_of
from support.ssh_board import make_board

from deadweight.pipeline.recipe import Recipe, read_recipe
from deadweight.pipeline.runs.cache import Finished, Watcher, prepared
from deadweight.pipeline.runs.store import Store
from deadweight.targets.errors import ArtifactError

TRAIN = ("train", {"epochs": 1})


def recipe_in(folder: Path, url: str, **options: Any) -> Recipe:
    """A recipe of the stages train and statistics, with a store."""
    pairs = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    head = f"store = {{ url = {json.dumps(url)}, options = {{ {pairs} }} }}"
    project_of(folder, recipe_of(TRAIN, "statistics", workload="mine.py:Mine", head=head))
    return read_recipe(folder / "recipe.toml")


def stepped(recipe: Recipe, directory: Path) -> list[Finished]:
    """All stages of the recipe, run in a directory or read from the store."""
    run, work = prepared(recipe, directory, Watcher())
    for stage in recipe.stages:
        work = run.step(stage, work)
    return run.finished


def ran(recipe: Recipe, directory: Path) -> list[str]:
    """The stages that were not kept."""
    return [one.name for one in stepped(recipe, directory) if not one.cached]


def test_another_directory_goes_on_from_the_store_alone(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, f"file://{tmp_path}/store")
    assert ran(recipe, tmp_path / "first") == ["train", "statistics"]
    assert ran(recipe, tmp_path / "other") == []
    (kept,) = (tmp_path / "first" / "stages").glob("train-*/checkpoint.safetensors")
    (came,) = (tmp_path / "other" / "stages").glob("train-*/checkpoint.safetensors")
    assert kept.read_bytes() == came.read_bytes()
    names = sorted(path.name.partition("-")[0] for path in (tmp_path / "other" / "stages").iterdir())
    assert names == ["statistics", "train"]  # and nothing half unpacked


def test_a_stage_that_was_finished_before_there_was_a_store_is_sent(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, f"file://{tmp_path}/store")
    stepped(recipe, tmp_path / "run")
    shutil.rmtree(tmp_path / "store")
    assert ran(recipe, tmp_path / "run") == []
    assert ran(recipe, tmp_path / "other") == []


def test_what_is_damaged_in_a_store_is_never_used(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, f"file://{tmp_path}/store")
    stepped(recipe, tmp_path / "run")
    (tar,) = (tmp_path / "store" / "stages").glob("train-*/*.tar")
    whole = tar.read_bytes()
    for bad in (whole[:-2000], whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:], b""):
        tar.write_bytes(bad)
        with pytest.raises(ArtifactError, match="is damaged: its SHA-256 is not that in its name") as caught:
            stepped(recipe, tmp_path / "other")
        assert str(tar.name) in caught.value.what
        assert not list((tmp_path / "other" / "stages").glob("train-*"))
    tar.unlink()
    assert ran(recipe, tmp_path / "other") == ["train"]


def test_an_upload_that_was_cut_off_is_no_stage(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, f"file://{tmp_path}/store")
    stepped(recipe, tmp_path / "run")
    (tar,) = (tmp_path / "store" / "stages").glob("train-*/*.tar")
    tar.with_name(".0123").write_bytes(tar.read_bytes()[:500])
    tar.unlink()
    assert ran(recipe, tmp_path / "other") == ["train"]


def test_a_store_that_fails_in_mid_run_says_so_and_the_stages_stay(tmp_path: Path) -> None:
    """A file where the store's folder was: what a mount that went away looks like, also to root."""
    recipe = recipe_in(tmp_path, f"file://{tmp_path}/store")
    run, work = prepared(recipe, tmp_path / "run", Watcher())
    work = run.step(recipe.stages[0], work)
    (tmp_path / "store").rename(tmp_path / "away")
    (tmp_path / "store").write_text("")
    with pytest.raises(ArtifactError, match=r"The store file://.* cannot be read: ") as caught:
        run.step(recipe.stages[1], work)
    assert "Run the same command again" in caught.value.cure
    (tmp_path / "store").unlink()
    (tmp_path / "away").rename(tmp_path / "store")
    assert ran(recipe, tmp_path / "run") == ["statistics"]


def run_mounted(recipe: Recipe, mount: str) -> tuple[str, str]:
    """What `deadweight run` says, and the files in the store then, with a mount over the folder "store"."""
    tmp_path = recipe.path.parent
    (tmp_path / "store").mkdir()
    script = f"mount {mount} {tmp_path}/store && $0 $@; code=$?; find {tmp_path}/store -type f; exit $code"
    out = ["run", str(recipe.path), "--out", str(tmp_path / "run")]
    command = ["unshare", "--mount", "sh", "-c", script, sys.executable, "-m", "deadweight", *out]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # they are in the stages' keys
    done = subprocess.run(command, env={**os.environ, **threads}, capture_output=True, text=True, check=False)
    if "unshare: " in done.stderr or "mount: " in done.stderr:
        pytest.skip("this machine allows no mount namespaces")
    assert "Traceback" not in done.stderr
    assert done.returncode == 2
    return " ".join(done.stderr.split()), done.stdout.strip()


def test_a_store_that_is_read_only_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    said, files = run_mounted(
        recipe_in(tmp_path, f"file://{tmp_path}/store"), f"--bind -o ro {tmp_path}/empty"
    )
    assert "store cannot be written: Read-only file system" in said
    assert "the permission to write there" in said
    assert not files
    assert not (tmp_path / "run" / "stages").exists()


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("mount -o remount,bind,ro", "Read-only file system"),
        ("umount --lazy", "No such file or directory"),
    ],
    ids=["read-only", "gone"],
)
def test_a_store_that_turns_read_only_or_goes_in_mid_run_keeps_what_it_had_and_gets_the_rest_later(
    command: str, reason: str, tmp_path: Path
) -> None:
    """The second stage's first batch finds the first stage sent, and does it."""
    recipe = recipe_in(tmp_path, f"file://{tmp_path}/store/runs")
    disk, store = tmp_path / "disk", tmp_path / "store"
    disk.mkdir()
    with (tmp_path / "mine.py").open("a") as mine:
        mine.write(
            "    def batches(self, split, *, seed=0):\n"
            "        import pathlib, subprocess\n"
            f"        if list(pathlib.Path({str(store)!r}).glob('runs/stages/train-*/*.tar')):\n"
            f"            subprocess.run({[*command.split(), str(store)]})\n"
            "        return super().batches(split, seed=seed)\n"
        )
    said, _ = run_mounted(recipe, f"--bind {disk}")
    assert "store/runs could not be sent the finished stage statistics-" in said
    assert f": {reason}." in said
    assert "Free space there, or restore the access. Run the same command again" in said
    assert [path.parent.name.partition("-")[0] for path in disk.rglob("*.tar")] == ["train"]
    assert not list(store.iterdir())  # nothing was written where the disk had been
    store.rmdir()
    disk.rename(store)
    assert ran(read_recipe(recipe.path), tmp_path / "run") == []
    assert ran(read_recipe(recipe.path), tmp_path / "other") == []


def test_a_full_store_is_named_and_nothing_half_written_counts(tmp_path: Path) -> None:
    said, files = run_mounted(recipe_in(tmp_path, f"file://{tmp_path}/store"), "-t tmpfs -o size=64k none")
    assert "could not be sent the finished stage train-" in said
    assert "No space left on device" in said
    assert "stages that are finished here are kept, and are sent then" in said
    assert not files
    assert ran(read_recipe(tmp_path / "recipe.toml"), tmp_path / "run") == ["statistics"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense://x", "cannot be opened: Protocol not known: nonsense"),
        ("file:///proc/1/nothing", "cannot be written"),
    ],
)
def test_a_store_that_cannot_be_one_is_refused_before_the_first_stage(
    tmp_path: Path, url: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_in(tmp_path, url)
    assert exit_code("run", recipe.path, "--out", tmp_path / "run") == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "stages").exists()


def test_a_second_driver_of_a_sweep_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    store = Store(f"file://{tmp_path}/store")
    with store.driven("one sweep"):
        with (
            pytest.raises(ArtifactError, match=rf"Process {os.getpid()} on {socket.gethostname()} runs this"),
            Store(f"file://{tmp_path}/store").driven("one sweep"),
        ):
            pass
        with store.driven("another sweep"):
            pass
    with store.driven("one sweep"):  # free again
        (lease,) = (tmp_path / "store" / "drivers").iterdir()
        left = json.loads(lease.read_text())
        lease.write_text(json.dumps({**left, "host": "elsewhere", "alive": time.time() - 120}))
        with store.driven("one sweep"):  # that of a driver that was killed two minutes ago
            pass
        lease.write_text(json.dumps({**left, "pid": 2**22 + 1}))
        with store.driven("one sweep"):  # that of a dead process of this machine
            pass


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a server that speaks S3, and its process."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "moto.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
        try:
            for _ in range(600):
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}", server
        finally:
            server.kill()
            server.wait()


@pytest.mark.slow
def test_a_bucket_is_a_store_and_its_end_in_mid_run_is_an_error(
    tmp_path: Path, s3: tuple[str, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    address, server = s3
    recipe = recipe_in(tmp_path, "s3://kept/runs", endpoint_url=address)
    assert ran(recipe, tmp_path / "first") == ["train", "statistics"]
    assert ran(recipe, tmp_path / "other") == []
    run, work = prepared(recipe, tmp_path / "third", Watcher())
    work = run.step(recipe.stages[0], work)
    server.kill()
    with pytest.raises(ArtifactError, match=r"The store s3://kept/runs cannot be read"):
        run.step(recipe.stages[1], work)


@pytest.mark.slow
def test_a_folder_behind_ssh_is_a_store(tmp_path: Path) -> None:
    pytest.importorskip("sshfs")
    board = make_board(tmp_path / "there")
    with (board.place / "sshd_config").open("a") as config:
        config.write("Subsystem sftp internal-sftp\n")
    recipe = recipe_in(tmp_path, f"ssh://board{board.home}/runs", config=str(board.config))
    assert ran(recipe, tmp_path / "first") == ["train", "statistics"]
    assert ran(recipe, tmp_path / "other") == []
    assert len(list((board.home / "runs" / "stages").rglob("*.tar"))) == 2
    run, work = prepared(recipe, tmp_path / "third", Watcher())
    work = run.step(recipe.stages[0], work)
    board.cut_now()
    with pytest.raises(ArtifactError, match=r"The store ssh://board.* cannot be read"):
        run.step(recipe.stages[1], work)
