"""What a benchmark measured, as lines of JSON: it can be stopped at any moment."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def recorded(record: Path) -> list[Row]:
    """The rows so far; a line that was cut off by a kill is left out."""
    rows = []
    for line in filter(None, record.read_text().splitlines() if record.exists() else ()):
        try:
            rows.append(json.loads(line))
        except ValueError:
            print(f"{record}: a line that was cut off is measured again.", file=sys.stderr)
    return rows


def append(record: Path, *rows: Row) -> None:
    """More rows, on the disk before it returns; each begins a line, as the last may have been cut off."""
    record.parent.mkdir(parents=True, exist_ok=True)
    with record.open("a") as file:
        file.write("".join("\n" + json.dumps(row) for row in rows))
        file.flush()
        os.fsync(file.fileno())


def measure_missing(
    about: str | None,
    record: Path,
    cases: Iterable[Any],
    key: str,
    measure: Callable[[Any, int], list[Row]],
    table: Callable[[Sequence[Row]], str],
) -> None:
    """The command of a benchmark with a list of cases: measures what is not on record, and prints the table.

    `key` is the place of the case in a row; `measure` takes a case and the number of events.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=12)
    parser.add_argument("--table", action="store_true", help="print what was measured, and measure nothing")
    given = parser.parse_args()
    known = {row[key] for row in recorded(record)}
    for case in cases if not given.table else ():
        if case not in known:
            append(record, *measure(case, given.events))
    print(table(recorded(record)))
