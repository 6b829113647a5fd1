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
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from time import monotonic
from typing import Any, Callable, Dict, Iterator, Optional, Tuple, TypeVar

from ..errors import DeadweightError, MeasurementError, ModelError
from ..memory_fit import free_memory
from ..onnx_file import files_of
from ..visible import visible

T = TypeVar("T")
_FULL = re.compile(r"allocate memory for requested buffer of (size \d+)|bad[_ ]\w*alloc|MemoryError")
"""What Python and ONNX Runtime say of memory that they could not get."""
_SMALLER = "Use a smaller batch or model, free some memory, or use a machine with more."
_START_S = 120.0
_SHARE = 0.8
"""Of the free memory, for the child; the rest is for what other programs begin meanwhile."""
_STEP_S, _STEP_S_PER_MB = 40.0, 2.0
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


class OverdueError(MeasurementError):
    """A job did not end within its time, and its process was killed."""


class Child:
    """A process that runs jobs one after another."""

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory()
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed with the process
        self._talk, theirs = Pipe()
        self._at = "The start of Python"  # what is at work, for errors
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
            self._answer(_START_S, "The machine is too busy: try again later.", None)
        except (EOFError, ConnectionError):
            raise self._ended(None) from None
        except BaseException:
            self.close()
            raise

    def run(
        self,
        job: Callable[..., T],
        *,
        what: str,
        within_s: float = 600.0,
        cure: str = "",
        progress: Optional[Callable[..., None]] = None,
        limited: bool = True,
    ) -> T:
        """The result of `job()`, or of `job(progress=...)`, in the child; both can be pickled.

        Args:
            what: the models in it, for errors.
            within_s: its time, which begins anew with each report of progress.
            cure: where it did not end within it.
            limited: whether its memory is; the driver of a GPU reserves far more than it uses.

        Raises:
            OverdueError: it did not end within its time.
            ModelError: it took more memory than was free, or crashed its process.
            Exception: what the job raises.
        """
        limit, self._at = None, what
        with contextlib.suppress(MeasurementError):  # not Linux
            limit = int(_SHARE * free_memory()) if limited else None
        try:
            self._talk.send((job, progress is not None, str(Path.cwd()), limit))
            error, result, trace = self._answer(within_s, cure, progress)
        except (EOFError, ConnectionError):
            raise self._ended(limit) from None
        except BaseException:
            self.close()
            raise
        full = _FULL.search(trace)
        if full is not None:
            given = "there is" if limit is None else f"the {limit / 1e9:.1f} GB it was given"
            asked = full.group(1) or full.group()
            raise ModelError(f"{self._at} needs more memory than {given} ({asked}).", _SMALLER) from error
        if error is not None:
            raise error from (None if isinstance(error, DeadweightError) else RuntimeError(trace))
        return result  # type: ignore[no-any-return]

    def _answer(self, within_s: float, cure: str, progress: Optional[Callable[..., None]]) -> Any:
        end = monotonic() + within_s
        while self._talk.poll(max(end - monotonic(), 0)):
            kind, *answer = self._talk.recv()
            if kind == "done":
                return answer
            if kind == "at":
                self._at = answer[0]
            elif progress is not None:
                progress(*answer)
                end = monotonic() + within_s
        raise OverdueError(f"{self._at} did not end within {within_s:.0f} s and was stopped.", cure)

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

    def _ended(self, limit: Optional[int]) -> ModelError:
        """The error for a process that ended by itself."""
        code = self._process.wait()
        words = self._last_words()
        self._said.truncate(0)
        self.close()
        last = f": {words.splitlines()[-1][:200].rstrip('.')}" if words else ""
        given = "" if limit is None else f" It was given {limit / 1e9:.1f} GB of memory."
        if code == -signal.SIGKILL or "bad_alloc" in words:
            what = f"{self._at} took too much memory: the system ended its process{last}.{given}"
            return ModelError(what, _SMALLER)
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return ModelError(
            f"The process with {self._at} was {how}{last}.{given}",
            "The runtime crashed on this model: use another version of it, or export the model again.",
        )


_idle: Dict[Any, Child] = {}
"""By the paths and the environment that it began with."""
_parent: Optional[Connection] = None
"""In a child process, the connection to its parent."""


@contextlib.contextmanager
def child(*, kept: bool = False) -> Iterator[Child]:
    """A child for the block; a `kept` one is used again by the next such block, if it did not fail."""
    like = (tuple(sys.path), tuple(os.environ.items()))
    one = (_idle.pop(like, None) if kept else None) or Child()
    try:
        yield one
    except BaseException:
        one.close()
        raise
    if kept:
        _close_idle()
        _idle[like] = one
    else:
        one.close()


@atexit.register
def _close_idle() -> None:
    while _idle:
        _idle.popitem()[1].close()


def patience_s(*models: Path) -> float:
    """The time for one step with models, where the user set none: larger ones are slower."""
    size = sum(file.stat().st_size for model in models if model.is_file() for file in files_of(model))
    return _STEP_S + _STEP_S_PER_MB * size / 1e6


def at_work(*names: str) -> None:
    """Says in a child process which models a job is at, for the parent's error should it not end."""
    if _parent is not None:
        _parent.send(("at", " and ".join(dict.fromkeys(names))))


def _report(*step: object) -> None:
    assert _parent is not None
    _parent.send(("progress", *step))


def _serve(handle: int, parent: int) -> None:
    """The child's side: runs the jobs that it gets until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal; the parent gets it too
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        Path("/proc/self/oom_score_adj").write_text("1000")
    global _parent
    _parent = talk = Connection(handle)
    talk.send(("done",))
    while os.getppid() == parent:
        answer: Tuple[Any, ...]
        try:
            job, reports, folder, limit = talk.recv()
            os.chdir(folder)
            _, most = resource.getrlimit(resource.RLIMIT_DATA)
            own = most if limit is None else limit if most == resource.RLIM_INFINITY else min(limit, most)
            resource.setrlimit(resource.RLIMIT_DATA, (own, most))
            answer = (None, job(progress=_report) if reports else job(), "")
        except EOFError:
            return
        except Exception as error:
            answer = (error, None, traceback.format_exc())
        talk.send(("done", *answer))
