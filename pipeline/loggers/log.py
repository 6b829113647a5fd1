"""The logger contract, and the logs of a run: `log = "mlflow:URI"` or "tensorboard:DIR" in a recipe.

A logger is a file of this folder; its name is the prefix, and that of the extra with what it needs. Its
function `log(place, first)` opens a `Log`. The user's own is a `Log` itself, named "module:function".
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

from ...targets.errors import RecipeError, meant_and, users_code
from ..stage import files_with

Status = Literal["running", "finished", "failed"]


@dataclass(frozen=True)
class Entry:
    """What a log is called with: before the first stage, after each one, and at the end.

    Names are paths such as "tuned/speedup/low". Times are in seconds, sizes in bytes; intervals have 95 %.

    Attributes:
        run: the name of the run's directory.
        folder: the recipe's.
        step: how many stages are done.
        status: "finished" or "failed" in the last entry.
        settings: of the recipe and its stages, as text; none changes within a run.
        figures: scores, sizes, times, and judgements with their intervals.
        words: verdict and remarks.
        files: in the last entry, report.html and report.json.
    """

    run: str
    folder: Path
    step: int = 0
    status: Status = "running"
    settings: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    def of(self, values: Mapping[str, Any]) -> Entry:
        """This entry with nested values: numbers, words, and below a key "settings" settings."""
        settings, figures, words = {}, {}, {}
        for path, value in _flat(values):
            name = "/".join(key for key in path if key != "settings")
            if "settings" in path:
                settings[name] = str(value)
            elif isinstance(value, (int, float)):
                figures[name] = float(value)
            elif value is not None:
                words[name] = str(value)
        return replace(self, settings=settings, figures=figures, words=words)


Log = Callable[[Entry], None]


@dataclass
class Logs:
    """The open logs of a run. One that fails gets no more entries, and `remarks` says so."""

    open: dict[str, Log]
    remarks: list[str] = field(default_factory=list)

    def write(self, entry: Entry) -> None:
        """Writes an entry to each log."""
        for spec, log in list(self.open.items()):
            try:
                log(entry)
            except Exception as error:  # whatever a server or a user's code does, the run goes on
                del self.open[spec]
                prefix, _, place = spec.partition(":")
                reason = _reason(error, place)
                self.remarks.append(
                    f'The log "{prefix}" failed at step {entry.step} and ends there: {reason}'
                )


@contextlib.contextmanager
def logs(specs: Sequence[str], first: Entry) -> Iterator[Logs]:
    """The logs that a recipe names, opened; an error within the block is their last entry.

    Raises:
        RecipeError: there is no such log, its package is missing, or it cannot be written.
    """
    made = Logs({spec: _opened(spec, first) for spec in specs})
    try:
        yield made
    except BaseException:
        made.write(replace(first.of({}), status="failed"))
        raise


def loggers() -> list[str]:
    """The prefixes: the files of this folder with a function `log`."""
    return files_with("log", Path(__file__).parent)


def _opened(spec: str, first: Entry) -> Log:
    prefix, _, place = spec.partition(":")
    if prefix not in loggers():
        return _own(spec, first)
    try:
        log: Log = importlib.import_module(f".{prefix}", __package__).log(place, first)
        log(first)
    except ModuleNotFoundError as error:
        cure = f'Install the extra [{prefix}], in a checkout: pip install ".[{prefix}]".'
        raise RecipeError(f'The log "{prefix}" needs {error.name}.', cure) from error
    except Exception as error:
        cure = f'Check what follows "{prefix}:" in the recipe; without it: --set "log=[]".'
        raise RecipeError(f'The log "{prefix}" cannot be written: {_reason(error, place)}', cure) from error
    return log


def _own(spec: str, first: Entry) -> Log:
    module, _, name = spec.partition(":")
    known = f"The logs are: {', '.join(f'{one}:PLACE' for one in loggers())}; your own is module:function."
    if not name or PathFinder.find_spec(module.partition(".")[0]) is None:
        raise RecipeError(f'There is no log "{spec}".', meant_and(module, loggers(), known))
    with users_code(f'the log "{spec}" was opened', RecipeError):
        log: Log = getattr(importlib.import_module(module), name)
        log(first)
    return log


def _reason(error: Exception, place: str) -> str:
    """The first line of an error's message, with its kind and without the address: it may have a password."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return text.replace(place, "...") if "//" in place else text


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of nested mappings, each with its keys."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _flat(one, (*path, str(key)))
    else:
        yield path, value
