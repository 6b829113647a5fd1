"""Writes pages and tables from a run's report.json, and from a sweep alone.

Nothing is measured or judged here: a page can always be made again from the JSON beside it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...targets.artifact import utc_now, write_json, write_text
from .page import report_page, sweep_page
from .schema import VERSION, Sweep, SweepControl, read_report
from .units import ScoreScale


def write_report(directory: Path) -> Path:
    """Makes report.html beside a run's report.json, and returns its path; errors as of `read_report`."""
    path = Path(directory) / "report.html"
    write_text(path, report_page(read_report(directory)))
    return path


def write_sweep(
    directory: Path, sweep: Sweep, scale: ScoreScale, *, name: str, made_by: Mapping[str, str]
) -> Path:
    """Writes sweep.csv, sweep.json and sweep.html; returns the path of the page.

    `made_by` are the versions and the machine of the figures.
    """
    directory = Path(directory)
    made = {"created": utc_now(), "made_by": dict(made_by)}
    score = {"score_name": scale.name, "higher_is_better": scale.higher_is_better}
    write_json(directory / "sweep.json", {"schema": VERSION, "name": name, **score, **made, **sweep})
    write_text(directory / "sweep.csv", _csv(sweep))
    path = directory / "sweep.html"
    write_text(path, sweep_page(sweep, scale, name=name, made=made))
    return path


def _csv(sweep: Sweep) -> str:
    """One line per setting; exact figures, an empty field for values that were not measured."""
    file = io.StringIO()
    plain = ["score", "raw_score", "score_change", "parameters", "parameters_removed", "macs", "file_bytes"]
    judged = ["outcome", "ratio", "low", "high"]
    optional = ("front", "seeds", "score_spread", "raw_spread")
    seeded = [key for key in optional if any(key in row for row in sweep["rows"])]
    names = list(dict.fromkeys(name for row in sweep["rows"] for name in row.get("controls", {})))
    against = [(name, key) for name in names for key in SweepControl.__annotations__]
    writer = csv.writer(file, lineterminator="\n")
    head = [*sweep["settings"], *plain, *(f"speedup_{key}" for key in judged), "chosen", "split"]
    writer.writerow([*head, *seeded, *(f"{name}_{key}" for name, key in against)])
    for row in sweep["rows"]:
        values: dict[str, Any] = dict(row)
        speedup: dict[str, Any] = dict(row["speedup"] or {})
        controls: dict[str, Any] = dict(row.get("controls", {}))
        line = [row["settings"].get(name) for name in sweep["settings"]]
        line += [values[key] for key in plain] + [speedup.get(key) for key in judged]
        line += [str(row["chosen"]).lower(), row["split"]]
        line += [
            str(value).lower() if isinstance(value, bool) else value for value in map(values.get, seeded)
        ]
        writer.writerow([*line, *(controls.get(name, {}).get(key) for name, key in against)])
    return file.getvalue()
