"""Shared by commands that run stages: a line and a bar for each stage, and the examples' data directory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .printer import err
from .tables import bar, stage_line

if TYPE_CHECKING:
    from ..pipeline.runs.cache import Finished
    from ..pipeline.runs.start import Watcher


@contextlib.contextmanager
def watching(*, goes_on: bool = True) -> Iterator[Watcher]:
    """A line on stderr for every stage, and a bar while it runs; `goes_on`: finished stages are kept."""
    from ..pipeline.runs.start import Watcher

    with bar(goes_on=goes_on) as shown:

        def ended(finished: Finished) -> None:
            shown.clear()
            err.print(
                stage_line(finished.name, None if finished.cached else finished.seconds, finished.words)
            )

        yield Watcher(started=lambda name: shown(0, 1, name), progress=shown, ended=ended)


def point_to(data: str | None) -> None:
    """Sets the examples' data directory; a user's own workload need not read it."""
    if data is not None:
        os.environ["DEADWEIGHT_DATA"] = data
