"""The report as a page, top to bottom in the order of a reader's questions.

Is it faster, and how sure is that? What did it cost? Would anything else have done as well? What was
removed, and where? How was it measured? What a run did not do has no section.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .document import document, escape, legend, plot, section
from .plots import (
    histogram_figure,
    history_figure,
    layers_figure,
    networks_of,
    series,
    speedup_figure,
    thresholds,
    timed_networks,
    widths_figure,
)
from .schema import Budget, Report, Row, Sweep, UnitLists
from .tables import (
    ICONS,
    SIGNS,
    facts,
    figure,
    history_table,
    layers_table,
    networks_table,
    stages_table,
    sweep_table,
    widths_table,
)
from .tradeoff import beyond_words, tradeoff_figure
from .units import PLUS_MINUS, ScoreScale, count, duration, interval, moment, percent, ratio, size
from .words import (
    budget_words,
    budgets_words,
    how_sure,
    judged_row,
    label,
    protocol_words,
    sampling_error,
    scale_of,
)

GROUPS_OPEN = 6
_SETTINGS = [
    ("var(--kept)", "no setting is better in both"),
    ("var(--dim)", "beaten by another"),
    ("var(--removed)", "chosen"),
]


def report_page(report: Report) -> str:
    """report.html as text."""
    scale = scale_of(report)
    return document(
        f"{report['name']}: {report['verdict']['sentence']}",
        [
            _verdict(report),
            _key_figures(report, scale),
            _networks(report, scale),
            _controls(report),
            _widths(report),
            _histograms(report.get("statistics") or {}, _thresholds(report)),
            _sweep(report.get("sweep"), scale),
            _layers(report),
            _conditions(report),
            _stages(report),
        ],
    )


def sweep_page(
    sweep: Sweep,
    scale: ScoreScale,
    *,
    name: str,
    made: Mapping[str, Any],
    statistics: dict[str, UnitLists] | None,
) -> str:
    """sweep.html as text; `made` says when, by which versions and on which machine."""
    told = f"{len(sweep['rows'])} settings · {moment(made['created'])}"
    head = f'<header><h1>{escape(name)}</h1><p class="run">{escape(told)}</p></header>'
    conditions = section("Made with", facts(made["made_by"]))
    return document(name, [head, _sweep(sweep, scale), _histograms(statistics or {}, {}), conditions])


def history_page(reports: Sequence[Report]) -> str:
    """history.html as text: `reports` oldest first."""
    scale = scale_of(reports[-1])
    drawn = history_figure(reports)
    head = f'<header><h1>History</h1><p class="run">{len(reports)} runs, oldest first</p></header>'
    note = "Runs were measured at different times: compare their ratios, not their times."
    colours = legend([(series(at), label(name)) for at, name in enumerate(timed_networks(reports))])
    times = section("Latency", colours, plot(drawn), note=note) if drawn else ""
    return document("History", [head, times, section("Runs", history_table(reports, scale))])


def _verdict(report: Report) -> str:
    verdict = report["verdict"]
    icon = (
        '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="2.6" '
        f'stroke-linecap="round" stroke-linejoin="round" aria-hidden="true">{ICONS[verdict["outcome"]]}</svg>'
    )
    return (
        f'<header><p class="run">{escape(report["name"])} · {escape(moment(report["created"]))}</p>'
        f'<div class="verdict {verdict["outcome"]}"><h1>{icon}<span>{escape(verdict["sentence"])}</span></h1>'
        f"<p>{escape(how_sure(verdict))}</p></div>{_budgets(report)}</header>"
    )


def _budgets(report: Report) -> str:
    """Kept apart from the verdict: a network can be faster and break a budget all the same."""
    budgets = report.get("budgets", [])
    if not budgets:
        return ""
    scale = scale_of(report)
    tones = [_budget_tone(budget) for budget in budgets]
    worst = next(tone for tone in ("slower", "cannot_tell", "faster") if tone in tones)
    items = "".join(
        f'<li class="{tone}"><span class="tone" aria-hidden="true">{SIGNS[tone]}</span> '
        f"{escape(budget_words(budget, scale))}</li>"
        for budget, tone in zip(budgets, tones, strict=True)
    )
    return (
        f'<div class="verdict second {worst}"><p><strong>{escape(budgets_words(budgets))}</strong></p>'
        f'<ul class="budgets">{items}</ul></div>'
    )


def _budget_tone(budget: Budget) -> str:
    if budget["met"] is None or budget["value"] is None:
        return "cannot_tell"
    return "faster" if budget["met"] else "slower"


def _key_figures(report: Report, scale: ScoreScale) -> str:
    first, last = report["rows"][0], judged_row(report)
    if last is first:
        return ""
    tiles: list[tuple[str, str, str]] = []
    if first["parameters"] and last["parameters"] is not None:
        removed = 1 - last["parameters"] / first["parameters"]
        below = f"{count(first['parameters'])} to {count(last['parameters'])}"
        tiles.append(("Parameters removed", figure(removed, percent(removed)), below))
    if first["score"] is not None and last["score"] is not None:
        change = last["score"] - first["score"]
        below = f"{scale.text(first['score'])} to {scale.text(last['score'])}"
        tiles.append((f"Change of {scale.name}", figure(change, scale.change(change)), below))
    speedup = last["speedup"]
    if speedup:
        below = interval(speedup["low"], speedup["high"])
        tiles.append(("Speed-up", figure(speedup["ratio"], ratio(speedup["ratio"])), below))
    if first["file_bytes"] and last["file_bytes"]:
        tiles.append(_smaller("File", first["file_bytes"], last["file_bytes"]))
    if first["memory_bytes"] and last["memory_bytes"]:
        tiles.append(_smaller("Memory", first["memory_bytes"], last["memory_bytes"]))
    items = "".join(
        f'<div><dt>{escape(name)}</dt><dd><span class="big">{big}</span>'
        f'<span class="small">{escape(below)}</span></dd></div>'
        for name, big, below in tiles
    )
    about = f"Key figures: {label(last['name'])} against {label(first['name'])}"
    return f'<dl class="figures" aria-label="{escape(about)}">{items}</dl>' if items else ""


def _smaller(name: str, before: int, after: int) -> tuple[str, str, str]:
    return name, figure(after, size(after)), f"was {size(before)}"


def _networks(report: Report, scale: ScoreScale) -> str:
    drawn = speedup_figure(report["rows"])
    picture = plot(drawn, "Speed-up with its interval; the dotted line is the original.") if drawn else ""
    samples = _test_samples(report)
    note = "Latency: median of n calls, its interval below it. Speed-up: the original's time over this one's."
    score = report["rows"][0]["score"]
    if samples and scale.share and score is not None:
        error = scale.change(1.96 * sampling_error(score, samples), sign=False)
        note += (
            f" {scale.name.capitalize()} on {samples:,} test samples, {PLUS_MINUS}{error} by sampling alone."
        )
    return section("The networks", networks_table(report, scale), picture, note=note)


def _controls(report: Report) -> str:
    said = [row["words"] for row in report.get("controls", []) if "words" in row]
    rest = [sentence for sentence in report.get("words", []) if sentence not in said]
    return section("What the controls say", _sentences(said)) + section("Remarks", _sentences(rest))


def _sentences(told: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in told)
    return f'<ul class="words">{items}</ul>' if items else ""


def _widths(report: Report) -> str:
    widths = report.get("widths", [])
    if not widths:
        return ""
    colours = legend([("var(--kept)", "after"), ("var(--track)", "before")])
    table = f"<details><summary>As a table</summary>{widths_table(widths)}</details>"
    return section("Widths before and after", colours, plot(widths_figure(widths)), table)


def _histograms(statistics: dict[str, UnitLists], limits: dict[str, float]) -> str:
    parts = []
    for group, units in statistics.items():
        removed, total = sum(units["removed"]), len(units["removed"])
        pair = "".join(
            plot(histogram_figure(units, which, name=group, threshold=limits.get(which)))
            for which in ("mean", "std")
        )
        head = f"<h3>{escape(group)}</h3>"
        told = f'<p class="note">{removed:,} of {total:,} units removed</p>'
        parts.append(f'{head}{told}<div class="pair">{pair}</div>')
    shown, rest = parts[:GROUPS_OPEN], parts[GROUPS_OPEN:]
    if not shown:
        return ""
    more = f"<details><summary>{len(rest)} more groups</summary>{''.join(rest)}</details>" if rest else ""
    note = "Each unit's activation over the calibration data: its mean, and its standard deviation."
    if limits:
        note += " The dotted lines are the thresholds of the recipe."
    colours = legend([("var(--removed)", "removed"), ("var(--kept)", "kept")])
    return section("What was removed", colours, *shown, more, note=note)


def _sweep(sweep: Sweep | None, scale: ScoreScale) -> str:
    if not sweep or not sweep["rows"]:
        return ""
    drawn = tradeoff_figure(sweep, scale)
    splits = " and ".join(sorted({row["split"] for row in sweep["rows"]}))
    note = f"Every setting that was tried, scored on the {splits} split."
    colours = legend(_SETTINGS)
    picture = colours + plot(drawn, beyond_words(sweep, scale)) if drawn else ""
    words = "".join(f"<p>{escape(sentence)}</p>" for sentence in sweep.get("words", []))
    return section("The trade-off", picture, words, sweep_table(sweep, scale), note=note)


def _layers(report: Report) -> str:
    layers, rows = report.get("layers", []), _all_rows(report)
    drawn = layers_figure(layers, rows) if layers else None
    if not drawn:
        return ""
    judged = any(layer.get("judged") for layer in layers)
    opened = " open" if judged else ""
    table = f"<details{opened}><summary>As a table</summary>{layers_table(layers, rows)}</details>"
    note = "Taken with a profiler at work: read the times against each other, not as sums."
    if judged:
        note += " Answers are corrected for the number of layers (Holm); intervals hold for all at once."
    colours = legend([(series(at), label(name)) for at, name in enumerate(networks_of(layers, rows))])
    return section("Time a layer", colours, plot(drawn), table, note=note)


def _conditions(report: Report) -> str:
    protocol = report["protocol"]
    how = "".join(f"<p>{escape(sentence)}</p>" for sentence in protocol_words(protocol))
    return section("Conditions", facts(report["conditions"])) + section(
        "How it was measured", how, facts(protocol, skip=["words"])
    )


def _stages(report: Report) -> str:
    stages = report["stages"]
    if not stages:
        return ""
    ran = [stage["seconds"] for stage in stages if not stage["cached"]]
    note = f"{duration(sum(ran))} in this run" if ran else "Nothing had to run"
    note += f"; {len(stages) - len(ran)} of {len(stages)} stages came from the cache (their time is of then)."
    return section("Stages", stages_table(stages), note=note)


def _thresholds(report: Report) -> dict[str, float]:
    for stage in report["stages"]:
        if stage["name"].rpartition(".")[2].lower().startswith("prune"):
            return thresholds(stage["settings"])
    return {}


def _test_samples(report: Report) -> int | None:
    found = report["conditions"].get("test_samples")
    return found if isinstance(found, int) and found > 0 else None


def _all_rows(report: Report) -> list[Row]:
    return [*report["rows"], *report.get("controls", [])]
