"""A child process for what a model from outside may do: take all memory, never end, or crash its process.

The parent only waits: Ctrl-C works while a runtime computes, and a job ends with its time. The child's data
is limited to most of the memory that is free: an allocation beyond that fails in the runtime, which says so,
before the system kills anything. On Linux the child ends with its parent, however that ends. No message
passes inside a job, so that a timing is what it would be in the parent.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from time import monotonic
from typing import Any, Callable, Iterator, List, Optional, Tuple, TypeVar

from ..errors import DeadweightError, MeasurementError, ModelError
from ..memory_fit import free_memory
from ..progress import Progress
from ..visible import visible

T = TypeVar("T")
SMALLER = "Use a smaller batch or model, free some memory, or use a machine with more."
_START_S = 120.0
_SHARE = 0.8
"""Of the free memory, for the child; the rest is for what other programs begin meanwhile."""
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


class OverdueError(MeasurementError):
    """A job did not end within its time, and its process was killed."""


@dataclass(frozen=True)
class _Order:
    job: Callable[..., Any]
    reports: bool
    folder: str
    limit_bytes: Optional[int]


class Child:
    """A process that runs jobs one after another."""

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._talk, theirs = Pipe()
        # It imports the package from the same place, also from a zip file. Its working directory, which -c
        # puts first, is left out: it may contain a user's own random.py or json.py.
        paths = os.pathsep.join(map(os.path.abspath, sys.path))
        code = (
            f"import sys; sys.path = list(filter(None, sys.path)); from {__name__} import _serve; "
            f"_serve({theirs.fileno()}, {os.getpid()})"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._said,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": paths, "TMPDIR": self._place.name},
        )
        theirs.close()
        try:
            self._answer(_START_S, "The start of Python", "The machine is too busy: try again later.", None)
        except (EOFError, ConnectionError):
            raise self._ended("deadweight's own code", None) from None
        except BaseException:
            self.close()
            raise

    def run(
        self,
        job: Callable[..., T],
        *,
        what: str,
        within_s: float = math.inf,
        cure: str = "",
        progress: Optional[Progress] = None,
    ) -> T:
        """The result of `job()`, or of `job(progress=...)`, in the child; both can be pickled.

        Args:
            what: the models in it, for errors.
            cure: where it did not end `within_s` seconds.

        Raises:
            OverdueError: it did not end within its time.
            ModelError: it took more memory than was free, or crashed its process.
            Exception: what the job raises.
        """
        limit = _limit()
        try:
            self._talk.send(_Order(job, progress is not None, str(Path.cwd()), limit))
            error, result, trace = self._answer(within_s, what, cure, progress)
        except (EOFError, ConnectionError):
            raise self._ended(what, limit) from None
        except BaseException:
            self.close()
            raise
        if error is not None:
            raise error from (None if isinstance(error, DeadweightError) else RuntimeError(trace))
        return result  # type: ignore[no-any-return]

    def _answer(self, within_s: float, what: str, cure: str, progress: Optional[Progress]) -> Any:
        end = monotonic() + within_s
        while self._talk.poll(None if math.isinf(end) else max(end - monotonic(), 0)):
            kind, *answer = self._talk.recv()
            if kind != "progress":
                return answer
            assert progress is not None
            progress(*answer)
        raise OverdueError(f"{what} did not end within {within_s:.0f} s and was stopped.", cure)

    def close(self) -> None:
        """Ends the process. Closing twice is allowed."""
        if self._talk.closed:
            return
        self._talk.close()
        self._process.kill()
        self._process.wait()
        text = self._last_words()
        if text:
            sys.stderr.write(visible(text) + "\n")
        self._said.close()
        self._place.cleanup()

    def _last_words(self) -> str:
        self._said.seek(0)
        return self._said.read().decode("utf-8", "replace").strip()

    def _ended(self, what: str, limit: Optional[int]) -> ModelError:
        """The error for a process that ended by itself."""
        code = self._process.wait()
        words = self._last_words()
        self._said.truncate(0)
        self.close()
        last = f": {words.splitlines()[-1][:200].rstrip('.')}" if words else ""
        given = "" if limit is None else f" It was given {limit / 1e9:.1f} GB of memory."
        if code == -signal.SIGKILL or "bad_alloc" in words:
            what = f"{what} took too much memory: the system ended its process{last}.{given}"
            return ModelError(what, SMALLER)
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return ModelError(
            f"The process with {what} was {how}{last}.{given}",
            "The runtime crashed on this model: use another version of it, or export the model again.",
        )


_idle: List[Tuple[Any, Child]] = []


@contextlib.contextmanager
def child(*, kept: bool = False) -> Iterator[Child]:
    """A child for the block; a `kept` one is used again by the next such block, if it did not fail."""
    like = (sys.path[:], dict(os.environ))
    at, one = _idle.pop() if kept and _idle else (like, None)
    if one is not None and at != like:
        one.close()
        one = None
    one = one or Child()
    try:
        yield one
    except BaseException:
        one.close()
        raise
    if kept and not _idle:
        _idle.append((like, one))
    else:
        one.close()


@atexit.register
def _close_idle() -> None:
    while _idle:
        _idle.pop()[1].close()


def memory_given() -> str:
    """The memory that this process may take, for an error's text."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return "is free" if limit == resource.RLIM_INFINITY else f"the {limit / 1e9:.1f} GB it was given"


def _limit() -> Optional[int]:
    try:
        return int(_SHARE * free_memory())
    except MeasurementError:  # not Linux
        return None


def _serve(handle: int, parent: int) -> None:
    """The child's side: runs the jobs that it gets until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the parent gets it too
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        Path("/proc/self/oom_score_adj").write_text("1000")
    talk = Connection(handle)
    talk.send(("started",))
    while os.getppid() == parent:
        answer: Tuple[Any, ...]
        try:
            answer = (None, _done(talk.recv(), talk), "")
        except EOFError:
            return
        except MemoryError:
            what = f"The model needs more memory than {memory_given()}."
            answer = (ModelError(what, SMALLER), None, "")
        except Exception as error:
            answer = (error, None, traceback.format_exc())
        talk.send(("done", *answer))


def _done(order: _Order, talk: Connection) -> Any:
    os.chdir(order.folder)
    if order.limit_bytes is not None:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        own = order.limit_bytes if most == resource.RLIM_INFINITY else min(order.limit_bytes, most)
        resource.setrlimit(resource.RLIMIT_DATA, (own, most))
    if not order.reports:
        return order.job()
    return order.job(progress=lambda *step: talk.send(("progress", *step)))
