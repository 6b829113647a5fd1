"""The report as an HTML page, in the order of a reader's questions.

Is it faster, and how sure is that? What did it cost? Would another method have done as well? What was
removed, and where? How was it measured? Stages that did not run have no section. Nothing is measured or
judged here: a page can always be made again from the JSON beside it.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...targets.artifact import utc_now, write_json, write_text
from . import plots, tables
from .budget_page import search_section
from .document import Budgets, Group, Head, Legend, More, Part, Section, Tiles, Words, document, figure
from .schema import VERSION, Report, Sweep, SweepControl, UnitLists, read_report
from .tradeoff import tradeoff_figure
from .units import PLUS_MINUS, ScoreScale, capital, count, duration, interval, moment, percent, ratio, size
from .words import (
    budget_sentence,
    budgets_sentence,
    headline,
    how_sure,
    judged_row,
    label,
    protocol_sentences,
    sampling_error,
    scale_of,
)

GROUPS_OPEN = 6
_SETTINGS = [("var(--kept)", "Pareto-optimal"), ("var(--dim)", "dominated"), ("var(--removed)", "chosen")]
_REMOVED = [("var(--removed)", "removed"), ("var(--kept)", "kept")]
_WIDTHS = [("var(--kept)", "after"), ("var(--track)", "before")]


def report_page(report: Report) -> str:
    scale = scale_of(report)
    words, controls, protocol = report.get("words", []), report.get("controls", []), report["protocol"]
    rest = tables.facts(protocol, skip=["words"])
    said = [row["words"] for row in controls if "words" in row]
    verdict, run = report["verdict"], f"{report['name']} · {moment(report['created'])}"
    return document(
        f"{report['name']}: {headline(report)}",
        [
            Head(headline(report), run, verdict["outcome"], how_sure(verdict), [_budgets(report, scale)]),
            _key_figures(report, scale),
            _networks(report, scale),
            Section("What the controls say", [Words(said)]),
            Section("Remarks", [Words([one for one in words if one not in said])]),
            _widths(report),
            _histograms(report.get("statistics") or {}, _thresholds(report)),
            _sweep(report.get("sweep"), scale),
            search_section(report.get("search"), scale),
            _layers(report),
            Section("Conditions", [tables.facts(report["conditions"])]),
            Section("How it was measured", [Words(protocol_sentences(protocol), bullets=False), rest]),
            _stages(report),
        ],
    )


def sweep_page(sweep: Sweep, scale: ScoreScale, *, name: str, made: Mapping[str, Any]) -> str:
    """sweep.html as text; `made` has the date, the versions and the machine."""
    head = Head(name, f"{len(sweep['rows'])} settings · {moment(made['created'])}")
    conditions = Section("Made with", [tables.facts(made["made_by"])])
    return document(name, [head, _sweep(sweep, scale), conditions])


def _budgets(report: Report, scale: ScoreScale) -> Budgets | None:
    """Separate from the verdict: a network can be faster and still break a budget."""
    budgets = report.get("budgets", [])
    outcomes = {None: "cannot_tell", True: "faster", False: "slower"}
    kept = [None if budget["value"] is None else budget["met"] for budget in budgets]
    lines = [(outcomes[met], budget_sentence(one, scale)) for met, one in zip(kept, budgets, strict=True)]
    worst = next((one for one in ("slower", "cannot_tell", "faster") if one in dict(lines)), None)
    return Budgets(budgets_sentence(budgets), worst, lines) if worst else None


def _key_figures(report: Report, scale: ScoreScale) -> Tiles | None:
    first, last = report["rows"][0], judged_row(report)
    if last is first:
        return None
    tiles = []
    if first["parameters"] and last["parameters"] is not None:
        below = f"{count(first['parameters'])} to {count(last['parameters'])}"
        removed = figure(1 - last["parameters"] / first["parameters"], percent, below)
        tiles.append(("Parameters removed", removed))
    if first["score"] is not None and last["score"] is not None:
        below = f"{scale.text(first['score'])} to {scale.text(last['score'])}"
        tiles.append((f"Change of {scale.name}", figure(last["score"] - first["score"], scale.change, below)))
    if speedup := last["speedup"]:
        tiles.append(("Speed-up", figure(speedup["ratio"], ratio, interval(speedup["low"], speedup["high"]))))
    files, memory = (first["file_bytes"], last["file_bytes"]), (first["memory_bytes"], last["memory_bytes"])
    for name, (before, after) in (("File", files), ("Memory", memory)):
        if before and after:
            tiles.append((name, figure(after, size, f"was {size(before)}")))
    about = f"Key figures: {label(last['name'])} against {label(first['name'])}"
    return Tiles(about, tiles) if tiles else None


def _networks(report: Report, scale: ScoreScale) -> Section:
    samples, score = report["conditions"].get("test_samples"), report["rows"][0]["score"]
    note = "Latency: median of n calls, its interval below it. Speed-up: the original's time over this one's."
    if isinstance(samples, int) and samples > 0 and scale.share and score is not None:
        error = f"{PLUS_MINUS}{scale.change(1.96 * sampling_error(score, samples), sign=False)}"
        note += f" {capital(scale.name)} on {samples:,} test samples, {error} by sampling alone."
    table = tables.networks_table(report, scale)
    return Section("The networks", [table, plots.speedup_figure(report["rows"])], note)


def _widths(report: Report) -> Section | None:
    if not (widths := report.get("widths", [])):
        return None
    table = More("As a table", [tables.widths_table(widths)])
    return Section("Widths before and after", [Legend(_WIDTHS), plots.widths_figure(widths), table])


def _histograms(statistics: dict[str, UnitLists], limits: dict[str, float]) -> Section | None:
    parts: list[Part] = []
    for group, units in statistics.items():
        note = f"{sum(units['removed']):,} of {len(units['removed']):,} units removed"
        limited = [(which, limits.get(which)) for which in ("mean", "std")]
        pair = [plots.histogram_figure(units, key, name=group, threshold=limit) for key, limit in limited]
        parts.append(Group(group, pair, note, pair=True))
    shown, rest = parts[:GROUPS_OPEN], parts[GROUPS_OPEN:]
    more = More(f"{len(rest)} more groups", rest) if rest else None
    note = "Each unit's activation over the calibration data: its mean, and its standard deviation."
    if limits:
        note += " The dotted lines are the thresholds of the recipe."
    return Section("What was removed", [Legend(_REMOVED), *shown, more], note) if shown else None


def _sweep(sweep: Sweep | None, scale: ScoreScale) -> Section | None:
    if not sweep or not sweep["rows"]:
        return None
    drawn = tradeoff_figure(sweep, scale)
    splits = " and ".join(sorted({row["split"] for row in sweep["rows"]}))
    words, table = Words(sweep.get("words", []), bullets=False), tables.sweep_table(sweep, scale)
    parts: list[Part | None] = [Legend(_SETTINGS) if drawn else None, drawn, words, table]
    return Section("The trade-off", parts, f"Every setting that was tried, scored on the {splits} split.")


def _layers(report: Report) -> Section | None:
    layers, rows = report.get("layers", []), [*report["rows"], *report.get("controls", [])]
    drawn = plots.layers_figure(layers, rows)
    judged = any(layer.get("judged") for layer in layers)
    note = "Measured with a profiler: compare the times with each other, do not add them."
    if judged:
        note += " Verdicts are corrected for the number of layers (Holm); intervals hold for all at once."
    colours = plots.legend([label(name) for name in plots.networks_of(layers, rows)])
    table = More("As a table", [tables.layers_table(layers, rows)], open=judged)
    return Section("Time per layer", [colours, drawn, table], note) if drawn else None


def _stages(report: Report) -> Section | None:
    stages = report["stages"]
    ran = [stage["seconds"] for stage in stages if not stage["cached"]]
    note = f"{duration(sum(ran))} in this run" if ran else "Nothing had to run"
    note += f"; {len(stages) - len(ran)} of {len(stages)} stages came from the cache (with their times then)."
    return Section("Stages", [tables.stages_table(stages)], note) if stages else None


def _thresholds(report: Report) -> dict[str, float]:
    for stage in report["stages"]:
        if stage["name"].rpartition(".")[2].lower().startswith("prune"):
            return plots.thresholds(stage["settings"])
    return {}


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
