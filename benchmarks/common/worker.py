"""A process that does one job after another under limits: one that hangs or dies is named, and replaced."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

MEMORY_BYTES = 8 << 30
PATIENCE = 10
_WITH_PARENT = 1  # prctl PR_SET_PDEATHSIG
OBEYED = re.compile(r"^\s*(?:::[a-z]|##(?:\[|vso\[|teamcity\[))|[\x00-\x08\x0b\x0c\x0e-\x1f]", re.MULTILINE)
"""A line that a CI obeys, or a character that a terminal does."""
BAD = ("traceback", "hung", "killed", "obeyed", "outside")


@dataclass(frozen=True)
class Outcome:
    """How a job ended: done, refused (with a cure), or one of `BAD`; what was said; and what it gave."""

    kind: str
    says: str = ""
    gave: Any = None


@contextlib.contextmanager
def printed(place: Path) -> Iterator[Callable[[], str]]:
    """All that this process prints, also libraries written in C, goes to a file; yields what reads it."""
    _flush()
    kept = [os.dup(number) for number in (1, 2)]
    with place.open("wb+") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
        try:
            yield lambda: _read(place)
        finally:
            _flush()
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)


def _read(place: Path) -> str:
    _flush()
    return place.read_text("utf-8", "replace")


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def attempted(act: Callable[[], Any], place: Path) -> Outcome:
    """What `act` does, with the errors that deadweight's entry point explains as refusals."""
    import typer

    from deadweight.targets.errors import DeadweightError
    from deadweight.terminal.tables import explain

    with printed(place) as read:
        kind, gave, says = "done", None, ""
        try:
            gave = act()
        except DeadweightError as error:
            kind, says = "refused", error.what
            explain(error.what, error.cure)
        except (OSError, ModuleNotFoundError) as error:
            kind, says = "refused", str(error)
        except (SystemExit, typer.Exit):
            pass  # a verdict of its own
        except BaseException:
            kind, says = "traceback", traceback.format_exc()
        text = read()
    if "Traceback (most recent call last)" in text:
        kind, says = "traceback", says or text[text.index("Traceback (most") :]
    elif found := OBEYED.search(text):
        kind, says = "obeyed", text[max(0, found.start() - 80) :][:200]
    return Outcome(kind, says[-2000:] if kind == "traceback" else says[:500] or text[-300:], gave)


def _serve(module: str, name: str, pipe: Connection, memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    do = getattr(importlib.import_module(module), name)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "printed"
        pipe.send(None)
        while True:
            job = pipe.recv()
            pipe.send(attempted(partial(do, job), place))


class Worker:
    """Calls one function of a module, by its name, in a process of its own."""

    def __init__(self, module: str, name: str, *, limit_s: float, memory_bytes: int = MEMORY_BYTES) -> None:
        self._of = (module, name, memory_bytes)
        self._limit_s = limit_s
        self._process: Any = None

    def ask(self, job: Any) -> Outcome:
        """What became of a job; "hung" after the limit, "killed" where the process died.

        The limit is of the processor's time; one that waits is stopped after `PATIENCE` times that.
        """
        if self._process is None:
            self._start()
        self._pipe.send(job)
        until, most = time.monotonic() + PATIENCE * self._limit_s, self._spent_s() + self._limit_s
        try:
            while time.monotonic() < until and self._spent_s() < most:
                if self._pipe.poll(0.5):
                    ended: Outcome = self._pipe.recv()
                    return ended
        except (EOFError, ConnectionError):
            return Outcome("killed", f"exit code {self.stop()}")
        self.stop()
        return Outcome("hung", f"no end after {self._limit_s:.0f} s")

    def stop(self) -> int | None:
        """Ends the process with all that it started; its exit code, if it ran."""
        process, self._process = self._process, None
        if process is None:
            return None
        process.join(0.1)  # one that died reports its own code
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()
        self._pipe.close()
        return int(process.exitcode)

    def _spent_s(self) -> float:
        """Processor time of the process and of its children that have ended."""
        with contextlib.suppress(OSError):
            told = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            return sum(map(int, told[11:15])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def _start(self) -> None:
        module, name, memory_bytes = self._of
        context = get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_alone, args=(module, name, there, memory_bytes), daemon=False)
        self._process.start()
        there.close()
        self._pipe.recv()


def _alone(module: str, name: str, pipe: Connection, memory_bytes: int) -> None:
    os.setpgid(0, 0)  # so that what it starts ends with it
    ctypes.CDLL(None).prctl(_WITH_PARENT, signal.SIGKILL)
    with contextlib.suppress(EOFError):
        _serve(module, name, pipe, memory_bytes)
