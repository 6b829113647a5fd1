"""The page's tables. Every figure is written for a reader and carried exactly, in a `data` element.

The table of networks turns into cards on a phone; CSS that lays out a table as a grid takes its meaning
from screen readers, so the roles are stated. Wider tables scroll in a box of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .document import escape
from .plots import networks_of
from .schema import Layer, Report, Row, Speedup, StageTime, Sweep, SweepRow, Width
from .units import (
    MISSING,
    TIMES,
    ScoreScale,
    by_name,
    capital,
    count,
    duration,
    interval,
    moment,
    percent,
    ratio,
    settings_text,
    significant,
    size,
    spoken,
    time_unit,
)
from .words import OUTCOMES, label

ICONS = {
    "faster": '<path d="M4 12.5l5 5L20 6.5"/>',
    "slower": '<path d="M6 6l12 12M18 6L6 18"/>',
    "equal": '<path d="M5 9h14M5 15h14"/>',
    "cannot_tell": '<path d="M8.5 8.5a3.5 3.5 0 1 1 5.2 3c-1.2.7-1.7 1.4-1.7 2.7M12 18.2v.1"/>',
}
SIGNS = {"faster": "\N{CHECK MARK}", "slower": "\N{MULTIPLICATION X}", "equal": "=", "cannot_tell": "?"}


def figure(value: float | None, text: str, small: str = "") -> str:
    """A figure as markup: its text, its exact value, and a smaller line below it."""
    below = f'<span class="small">{small}</span>' if small else ""
    return MISSING if value is None else f'<data value="{value!r}">{escape(text)}</data>{below}'


def networks_table(report: Report, scale: ScoreScale) -> str:
    """Original, pruned, tuned, INT8, and below them the controls: one row a network."""
    rows, controls = report["rows"], report.get("controls", [])
    times = [row["latency_s"]["p50"] for row in [*rows, *controls] if row["latency_s"]]
    heads = [capital(scale.name), "Parameters", "Multiply-adds", "File", "Latency p50", "p95", "p99"]
    heads += ["Memory", "Speed-up"]
    unit = time_unit(times)

    def markup(row: Row) -> str:
        cells = _network_cells(row, rows[0], scale, unit)
        body = "".join(
            f'<td role="cell" data-label="{escape(head)}">{cell}</td>'
            for head, cell in zip(heads, cells, strict=True)
        )
        return f'<tr role="row"><th role="rowheader" scope="row">{escape(label(row["name"]))}</th>{body}</tr>'

    names = ["Network", *heads]
    head = "".join(f'<th role="columnheader" scope="col">{escape(name)}</th>' for name in names)
    body = f'<tbody role="rowgroup">{"".join(markup(row) for row in rows)}</tbody>'
    if controls:
        body += (
            f'<tbody role="rowgroup"><tr class="group" role="row"><th role="rowheader" scope="rowgroup" '
            f'colspan="{len(heads) + 1}">Controls</th></tr>{"".join(markup(row) for row in controls)}</tbody>'
        )
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="The networks">'
        f'<table class="cards" role="table"><thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f"{body}</table></div>"
    )


def sweep_table(sweep: Sweep, scale: ScoreScale) -> str:
    """A row a setting, the chosen one first, then the smaller before the larger."""
    ordered = sorted(sweep["rows"], key=lambda row: (not row["chosen"], row["parameters"]))
    splits = sorted({row["split"] for row in ordered})
    head = [*(spoken(name) for name in sweep["settings"]), capital(scale.name), "Before tuning"]
    head += ["Parameters", "Multiply-adds", "File", "Speed-up"]
    rows = []
    for row in ordered:
        change = "" if row["score_change"] is None else escape(scale.change(row["score_change"]))
        removed = percent(row["parameters_removed"])
        cells = [_setting(name, row["settings"].get(name)) for name in sweep["settings"]]
        cells += [
            figure(row["score"], _score(scale, row["score"]), change + _seeds(row, "score_spread", scale)),
            figure(row["raw_score"], _score(scale, row["raw_score"]), _seeds(row, "raw_spread", scale)),
            figure(row["parameters"], count(row["parameters"]), f"{removed} removed"),
            figure(row["macs"], count(row["macs"] or 0)),
            figure(row["file_bytes"], size(row["file_bytes"] or 0)),
            _speedup(row["speedup"], short=True),
        ]
        if row["chosen"]:
            cells[0] += '<span class="small">chosen</span>'
        rows.append((cells, "chosen" if row["chosen"] else ""))
    name = f"All settings, scored on the {' and '.join(splits)} split"
    return _table(head, rows, name, tall=len(rows) > 12)


def _seeds(row: SweepRow, key: Literal["score_spread", "raw_spread"], scale: ScoreScale) -> str:
    """The standard deviation over the seeds, where there were several."""
    spread = row.get(key)
    return "" if spread is None else escape(f" ± {scale.change(spread, sign=False)}")


def widths_table(widths: Sequence[Width]) -> str:
    """The figures of the plot of widths."""
    rows = []
    for width in widths:
        share = percent(width["after"] / width["before"], 1) if width["before"] else MISSING
        before, after = (figure(width[key], f"{width[key]:,}") for key in ("before", "after"))
        rows.append(([escape(width["group"]), escape(width["kind"]), before, after, share], ""))
    return _table(["Group", "Kind", "Before", "After", "Kept"], rows, "Widths", left=2)


def layers_table(layers: Sequence[Layer], rows: Sequence[Row]) -> str:
    """The figures of the plot of layer times, all layers; and what was judged of the last network's."""
    networks = networks_of(layers, rows)
    last = next((n for n in reversed(networks) if any(n in one.get("judged", {}) for one in layers)), "")
    scale, unit = time_unit(
        [max((v or 0.0 for v in layer["latency_s"].values()), default=0.0) for layer in layers]
    )
    body = []
    for layer in layers:
        cells = [escape(layer["name"]), escape(layer.get("kind", ""))]
        for network in networks:
            value = layer["latency_s"].get(network)
            cells.append(figure(value, significant((value or 0.0) / scale)))
        if last:
            cells += _layer_verdict(layer, last)
        body.append((cells, ""))
    head = ["Layer", "Kind", *(f"{label(network)}, {unit}" for network in networks)]
    head += [f"{label(last)}: speed-up", "Why a pruned layer is not faster"] if last else []
    wrap = len(head) - 1 if last else None
    return _table(head, body, "Time a layer", left=2, wrap=wrap, tall=len(body) > 20)


def _layer_verdict(layer: Layer, network: str) -> list[str]:
    """The judgement of a layer in one network, and the reason where there is one."""
    verdict = layer.get("judged", {}).get(network)
    if verdict is None:
        return [MISSING, ""]
    told = interval(verdict["low"], verdict["high"])
    answer = figure(verdict["ratio"], ratio(verdict["ratio"]), f"{outcome(verdict['outcome'])}<br>{told}")
    return [answer, escape(verdict["reason"])]


def stages_table(stages: Sequence[StageTime]) -> str:
    """What ran, how long it took, and what came from the cache."""
    rows = []
    for stage in stages:
        settings = escape(settings_text(stage["settings"])) or MISSING
        came = "from the cache" if stage["cached"] else ""
        seconds = figure(stage["seconds"], duration(stage["seconds"]), came)
        rows.append(([escape(stage["name"]), settings, seconds], ""))
    return _table(["Stage", "Settings", "Time"], rows, "Stages", left=2, wrap=1)


def history_table(reports: Sequence[Report], scale: ScoreScale) -> str:
    """A row a run: its verdict and its last network's figures."""
    rows = []
    for report in reports:
        verdict, last = report["verdict"], report["rows"][-1]
        latency = last["latency_s"]["p50"] if last["latency_s"] else None
        cells = [
            escape(moment(report["created"])),
            escape(report["name"]),
            outcome(verdict["outcome"]),
            figure(
                verdict["ratio"], ratio(verdict["ratio"] or 1.0), interval(verdict["low"], verdict["high"])
            ),
            figure(latency, duration(latency or 0.0)),
            figure(last["score"], _score(scale, last["score"])),
            figure(last["file_bytes"], size(last["file_bytes"] or 0)),
        ]
        rows.append((cells, ""))
    head = ["Created", "Run", "Verdict", "Speed-up", "Latency p50", capital(scale.name), "File"]
    return _table(head, rows, "Runs", left=3, tall=len(rows) > 12)


def facts(values: Mapping[str, Any], skip: Sequence[str] = ()) -> str:
    """Names and values, those of nested objects too, as a list of definitions."""
    items = "".join(
        f"<div><dt>{escape(capital(': '.join(spoken(part) for part in path)))}</dt>"
        f"<dd>{escape(by_name(path[-1], value))}</dd></div>"
        for path, value in _leaves(values)
        if path[0] not in skip
    )
    return f'<dl class="facts">{items}</dl>' if items else ""


def outcome(name: str) -> str:
    """A judgement as text in its colour, with a sign for those who do not see colours."""
    return f'<span class="{name} tone">{SIGNS[name]} {OUTCOMES[name].lower()}</span>'


def simple_table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str, *, left: int = 3) -> str:
    """A table of cells that are markup already, for pages in other files."""
    return _table(head, [(cells, "") for cells in rows], name, left=left, tall=len(rows) > 12)


def _network_cells(row: Row, first: Row, scale: ScoreScale, unit: tuple[float, str]) -> list[str]:
    change = ""
    if row is not first and row["score"] is not None and first["score"] is not None:
        change = escape(scale.change(row["score"] - first["score"]))
    latency = row["latency_s"]
    times = [MISSING] * 3
    if latency:
        low, high = latency["p50_low"], latency["p50_high"]
        told = ""
        if low is not None and high is not None:
            told = f"{significant(low / unit[0])} to {significant(high / unit[0])}"
        texts = [
            f"{significant(latency[key] / unit[0])}\N{NO-BREAK SPACE}{unit[1]}"
            for key in ("p50", "p95", "p99")
        ]
        values = [latency["p50"], latency["p95"], latency["p99"]]
        times = [
            figure(v, t, s)
            for v, t, s in zip(values, texts, [told, "", f"n = {latency['n']:,}"], strict=True)
        ]
    return [
        figure(row["score"], _score(scale, row["score"]), change),
        figure(
            row["parameters"], count(row["parameters"] or 0), _less(row["parameters"], first["parameters"])
        ),
        figure(row["macs"], count(row["macs"] or 0), _less(row["macs"], first["macs"])),
        figure(row["file_bytes"], size(row["file_bytes"] or 0), _sent(row, first)),
        *times,
        figure(
            row["memory_bytes"],
            size(row["memory_bytes"] or 0),
            _less(row["memory_bytes"], first["memory_bytes"]),
        ),
        f"1{TIMES}" if row is first and not row["speedup"] else _speedup(row["speedup"]),
    ]


def _sent(row: Row, first: Row) -> str:
    """How much smaller the file is, and what of it is sent, where that was asked for."""
    less, sent = _less(row["file_bytes"], first["file_bytes"]), row.get("ota_bytes")
    return less if sent is None else f"{less}<br>{size(sent)} sent"


def _less(value: int | None, first: int | None) -> str:
    if value is None or not first or value == first:
        return ""
    change = value / first - 1
    return f"{percent(abs(change))} {'less' if change < 0 else 'more'}"


def _speedup(speedup: Speedup | None, *, short: bool = False) -> str:
    if not speedup:
        return MISSING
    told = interval(speedup["low"], speedup["high"])
    name, value = speedup["outcome"], speedup["ratio"]
    if short:
        sign = f'<span class="{name} tone" aria-hidden="true">{SIGNS[name]}</span> '
        said = f'<span class="hidden">{OUTCOMES[name]}: </span>'
        return sign + said + figure(value, ratio(value), told)
    return figure(value, ratio(value), f"{outcome(name)}<br>{told}")


def _score(scale: ScoreScale, score: float | None) -> str:
    return "" if score is None else scale.text(score)


def _setting(name: str, value: object) -> str:
    text = MISSING if value is None else by_name(name, value)
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return f'<data value="{value!r}">{escape(text)}</data>' if plain else escape(text)


def _leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in values.items():
        found += _leaves(value, (*above, key)) if isinstance(value, Mapping) else [((*above, key), value)]
    return found


def _table(
    head: Sequence[str],
    rows: Sequence[tuple[Sequence[str], str]],
    name: str,
    *,
    left: int = 1,
    wrap: int | None = None,
    tall: bool = False,
) -> str:
    """Markup of a table: heads are text, cells are markup; the first `left` columns stand to the left."""

    def side(at: int) -> str:
        names = [*(["left"] if at < left else []), *(["wrap"] if at == wrap else [])]
        return f' class="{" ".join(names)}"' if names else ""

    heads = "".join(f'<th scope="col"{side(at)}>{escape(text)}</th>' for at, text in enumerate(head))
    body = ""
    for cells, kind in rows:
        first = f'<th scope="row">{cells[0]}</th>'
        rest = "".join(f"<td{side(at)}>{cell}</td>" for at, cell in enumerate(cells) if at)
        body += f"<tr{f' class={kind}' if kind else ''}>{first}{rest}</tr>"
    box = "scroll tall" if tall else "scroll"
    return (
        f'<div class="{box}" tabindex="0" role="region" aria-label="{escape(name)}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )
