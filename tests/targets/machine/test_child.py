"""The child process in which models are opened and timed: real processes, real signals, real models."""

from __future__ import annotations

import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.hostile import endless, insatiable

import deadweight
from deadweight.export.release.bundle import bundle
from deadweight.targets.errors import DeadweightError, ModelError
from deadweight.targets.machine.child import OverdueError, child
from deadweight.targets.runtimes.runtime import own_runtime
from deadweight.targets.target import load_target
from deadweight.targets.timing.clock import time_together
from deadweight.targets.timing.measurement import Protocol
from deadweight.targets.timing.ort_layers import time_layers

MakeMlp = Callable[..., Path]


def children(parent: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def test_a_job_runs_in_another_process_and_its_errors_come_back(tmp_path: Path) -> None:
    with child() as process:
        assert process.run(os.getpid, what="m.onnx") != os.getpid()
        with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
            process.run(partial(os.stat, tmp_path / "none.onnx"), what="m.onnx")


def test_a_kept_process_is_used_again_and_one_of_another_environment_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pids = []
    for value in ("a", "a", "b"):
        monkeypatch.setenv("DEADWEIGHT_TRIED", value)
        with child(kept=True) as process:
            pids.append(process.run(os.getpid, what="m.onnx"))
    assert pids[0] == pids[1] != pids[2]


def test_a_job_that_does_not_end_is_stopped_and_leaves_no_process() -> None:
    before = children(os.getpid())
    with child() as process, pytest.raises(OverdueError, match=r"m\.onnx did not end within 0 s") as caught:
        process.run(partial(time.sleep, 60), what="m.onnx", within_s=0.2, cure="Give it more.")
    assert caught.value.cure == "Give it more."
    assert children(os.getpid()) == before


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (os.abort, r"The process with m\.onnx was ended by SIGABRT"),
        (partial(os._exit, 7), "ended with exit code 7"),
        (partial(signal.raise_signal, signal.SIGKILL), r"m\.onnx took too much memory.* It was given \d"),
        (partial(bytearray, 10**14), r"needs more memory than the \d+\.\d GB it was given"),
    ],
)
def test_a_process_that_dies_is_an_error_with_a_cure(job: Callable[[], object], says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught, child() as process:
        process.run(job, what="m.onnx")
    assert "Use " in caught.value.cure or "use " in caught.value.cure


def test_a_model_that_asks_for_all_memory_is_an_error_that_says_so(tmp_path: Path, mlp: MakeMlp) -> None:
    models = {"good": mlp(8, 4), "bad": insatiable(tmp_path / "insatiable.onnx")}
    for timed in (time_together, partial(time_layers)):
        with pytest.raises(
            ModelError, match=r"insatiable.onnx needs more memory than the .* GB .*4000000000000"
        ):
            timed(models, protocol=Protocol(events=2, event_s=0.01))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
@pytest.mark.slow
def test_a_signal_while_the_runtime_computes_ends_both_and_leaves_nothing(
    number: signal.Signals, tmp_path: Path
) -> None:
    model, place = endless(tmp_path / "endless.onnx"), tmp_path / "place"
    place.mkdir()
    command = subprocess.Popen(
        [sys.executable, "-m", "deadweight", "profile", model],
        env={**os.environ, "TMPDIR": str(place)},
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not (found := children(command.pid)) or _seconds(found[0]) < 1.5:  # it computes
        assert time.monotonic() < end
        time.sleep(0.1)
    command.send_signal(number)
    _, said = command.communicate(timeout=10)
    assert command.returncode == {signal.SIGINT: 130, signal.SIGKILL: -9}.get(number, 128 + number), said
    assert "Traceback" not in said
    time.sleep(0.2)
    status = Path(f"/proc/{found[0]}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()  # ended, if its new parent never asks
    assert number is signal.SIGKILL or not list(place.iterdir())


def _seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "limit_s"),
    [
        ("profile endless.onnx --cap-s 2", 25),
        ("compare good.onnx endless.onnx --cap-s 2", 25),
        ("profile endless.onnx", 65),
        ("quantize endless.onnx --data samples.npz", 70),
    ],
)
def test_a_model_that_never_ends_is_named_and_stopped(
    words: str, limit_s: float, tmp_path: Path, mlp: MakeMlp
) -> None:
    mlp(8, 4, name="good.onnx")
    endless(tmp_path / "endless.onnx")
    np.savez(tmp_path / "samples.npz", x=np.arange(8, dtype=np.float32)[None])
    started, command = time.monotonic(), [sys.executable, "-m", "deadweight", *words.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 2, done.stderr
    assert re.search(r"Error: endless\.onnx did not end within \d+ s and was stopped", done.stderr)
    assert time.monotonic() - started < limit_s
    assert not (tmp_path / "endless.int8").exists()


@pytest.mark.slow
def test_to_quantize_or_bundle_a_model_that_asks_for_all_memory_is_an_error_that_says_so(
    tmp_path: Path,
) -> None:
    model = insatiable(tmp_path / "insatiable.onnx")
    np.savez(tmp_path / "samples.npz", x=np.arange(8, dtype=np.float32)[None])
    with pytest.raises(ModelError, match=r"needs more memory than the .* GB"):
        deadweight.quantize(model, tmp_path / "samples.npz")
    with pytest.raises(ModelError, match=r"needs more memory than the .* GB"):
        bundle(model, tmp_path / "bundle", target=load_target("x86-cpu"))


STUCK = """
import time
from deadweight import Runtime
from deadweight.targets.runtimes.ort import open_ort

loads = []

def opened(path, *, threads=1):
    loads.append(path)
    time.sleep(60 if len(loads) > 2 else 0)
    return open_ort(path, threads=threads)

RUNTIME = Runtime(name="stuck", title="Stuck", library="onnxruntime", cure="None.", open=opened)
"""


@pytest.mark.slow
def test_the_events_before_one_that_never_ends_count(tmp_path: Path, mlp: MakeMlp) -> None:
    (tmp_path / "stuck.py").write_text(STUCK)
    runtime = own_runtime("stuck.py:RUNTIME", tmp_path)
    protocol = Protocol(events=9, event_s=0.01, cap_s=3.0, runtime=runtime.name)
    assert time_together({"a": mlp(8, 4)}, protocol=protocol)["a"].events == 2


def test_errors_are_the_same_after_the_way_between_processes() -> None:
    one = pickle.loads(pickle.dumps(OverdueError("It did.", "Do it.")))
    assert (type(one), one.what, one.cure) == (OverdueError, "It did.", "Do it.")
    assert issubclass(OverdueError, DeadweightError)


def data_limit() -> int:
    return resource.getrlimit(resource.RLIMIT_DATA)[0]


def test_a_job_for_a_gpu_has_no_limit_of_memory_whatever_the_one_before_it_had() -> None:
    before = data_limit()
    with child() as process:
        assert process.run(data_limit, what="a model") != before
        assert process.run(data_limit, what="an engine", limited=False) == before
