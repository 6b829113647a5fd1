"""The page's tables: every figure is rounded for a reader, with its exact value in a `data` element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from .document import Cell, Facts, Table, figure
from .plots import networks_of
from .schema import Layer, Report, Row, Speedup, StageTime, Sweep, SweepRow, Width
from .units import (
    ENGINE,
    MINUS,
    MISSING,
    TIMES,
    ScoreScale,
    by_name,
    capital,
    count,
    duration,
    interval,
    percent,
    ratio,
    settings_text,
    significant,
    size,
    spoken,
    time_unit,
)
from .words import label


def networks_table(report: Report, scale: ScoreScale) -> Table:
    rows, controls = report["rows"], report.get("controls", [])
    unit = time_unit([row["latency_s"]["p50"] for row in [*rows, *controls] if row["latency_s"]])
    engines = any("engine_score" in row for row in rows)
    memory = any(row["memory_bytes"] is not None for row in rows)
    groups = {
        title: [
            [label(row["name"]), *_network(row, rows[0], scale, unit, engines=engines, memory=memory)]
            for row in some
        ]
        for title, some in (("", rows), ("Controls", controls))
    }
    head = ["Network", capital(scale.name), *([capital(ENGINE)] if engines else [])]
    head += ["Parameters", "Multiply-adds", "File"]
    head += ["Latency p50", "p95", "p99", *(["Memory"] if memory else []), "Speed-up"]
    return Table("The networks", head, groups, cards=True, more=["Multiply-adds", "p95"])


def sweep_table(sweep: Sweep, scale: ScoreScale) -> Table:
    ordered = sorted(sweep["rows"], key=lambda row: (not row["chosen"], row["parameters"]))
    rows = []
    for row in ordered:
        change = "" if row["score_change"] is None else scale.change(row["score_change"])
        values = [(name, row["settings"].get(name)) for name in sweep["settings"]]
        first = "chosen" if row["chosen"] else ""
        cells = [
            *(_setting(name, value, "" if at else first) for at, (name, value) in enumerate(values)),
            figure(row["score"], scale.text, change + _seeds(row, "score_spread", scale)),
            figure(row["raw_score"], scale.text, _seeds(row, "raw_spread", scale)),
            figure(row["parameters"], count, f"{percent(row['parameters_removed'])} removed"),
            figure(row["macs"], count),
            figure(row["file_bytes"], size),
            _speedup(row["speedup"], brief=True),
        ]
        rows.append(cells)
    head = [*(spoken(name) for name in sweep["settings"]), capital(scale.name), "Before tuning"]
    head += ["Parameters", "Multiply-adds", "File", "Speed-up"]
    name = f"All settings, scored on the {' and '.join(sorted({row['split'] for row in ordered}))} split"
    chosen = sum(row["chosen"] for row in ordered)
    return Table(name, head, {"": rows}, chosen=chosen, more=["Multiply-adds"])


def widths_table(widths: Sequence[Width]) -> Table:
    rows = [
        [
            width["group"],
            width["kind"],
            *(figure(width[key], "{:,}".format) for key in ("before", "after")),
            percent(width["after"] / width["before"], 1) if width["before"] else "",
        ]
        for width in widths
    ]
    return Table("Widths", ["Group", "Kind", "Before", "After", "Kept"], {"": rows}, left=2)


def layers_table(layers: Sequence[Layer], rows: Sequence[Row]) -> Table:
    networks = networks_of(layers, rows)
    last = next((n for n in reversed(networks) if any(n in one.get("judged", {}) for one in layers)), "")
    slowest = [max((v or 0.0 for v in layer["latency_s"].values()), default=0.0) for layer in layers]
    scale, unit = time_unit(slowest)
    body = []
    for layer in layers:
        times = [layer["latency_s"].get(network) for network in networks]
        cells: list[Cell | str] = [layer["name"], layer.get("kind", "")]
        cells += [figure(time, lambda value: significant(value / scale)) for time in times]
        verdict = layer.get("judged", {}).get(last)
        if last:
            cells += [_speedup(verdict), verdict["reason"] if verdict else ""]
        body.append(cells)
    head = ["Layer", "Kind", *(f"{label(network)}, {unit}" for network in networks)]
    head += [f"{label(last)}: speed-up", "Why a pruned layer is not faster"] if last else []
    return Table("Time per layer", head, {"": body}, left=2, wrap=len(head) - 1 if last else None)


def stages_table(stages: Sequence[StageTime]) -> Table:
    """The stages with their times, and which came from the cache."""
    rows: list[list[Cell | str]] = []
    for stage in stages:
        seconds = figure(stage["seconds"], duration, "from the cache" if stage["cached"] else "")
        rows.append([stage["name"], settings_text(stage["settings"]), seconds])
    return Table("Stages", ["Stage", "Settings", "Time"], {"": rows}, wrap=1)


def facts(values: Mapping[str, Any], skip: Sequence[str] = ()) -> Facts | None:
    """Names and values, those of nested objects too; None if there are none."""
    known = [(path, value) for path, value in _leaves(values) if path[0] not in skip]
    lines = [(capital(": ".join(map(spoken, path))), by_name(path[-1], value)) for path, value in known]
    return Facts(lines) if lines else None


def _network(
    row: Row, first: Row, scale: ScoreScale, unit: tuple[float, str], *, engines: bool, memory: bool
) -> list[Cell | str]:
    def change(now: float | None, then: float | None) -> str:
        return "" if row is first or now is None or then is None else scale.change(now - then)

    scores = [figure(row["score"], scale.text, change(row["score"], first["score"]))]
    if engines:
        there = row.get("engine_score")
        scores.append(figure(there, scale.text, change(there, first.get("engine_score"))))
    times: list[Cell | str] = [""] * 3
    if latency := row["latency_s"]:
        low, high = latency["p50_low"], latency["p50_high"]
        ends = ""
        if low is not None and high is not None:
            ends = f"{significant(low / unit[0])} to {significant(high / unit[0])}"

        def time(value: float) -> str:
            return f"{significant(value / unit[0])}\N{NO-BREAK SPACE}{unit[1]}"

        below = {"p50": ends, "p95": "", "p99": f"n = {latency['n']:,}"}
        times = [Cell(time(value := latency[key]), value, more=[below[key]]) for key in ("p50", "p95", "p99")]
    sent = "" if (sent_bytes := row.get("ota_bytes")) is None else f"{size(sent_bytes)} sent"
    return [
        *scores,
        figure(row["parameters"], count, _less(row["parameters"], first["parameters"])),
        figure(row["macs"], count, _less(row["macs"], first["macs"])),
        figure(row["file_bytes"], size, _less(row["file_bytes"], first["file_bytes"]), sent),
        *times,
        *(
            [figure(row["memory_bytes"], size, _less(row["memory_bytes"], first["memory_bytes"]))]
            if memory
            else []
        ),
        f"1{TIMES}" if row is first and not row["speedup"] else _speedup(row["speedup"]),
    ]


def _less(value: int | None, first: int | None) -> str:
    if value is None or not first or value == first:
        return ""
    return f"{'+' if value > first else MINUS}{percent(abs(value / first - 1))}"


def _speedup(speedup: Speedup | None, *, brief: bool = False) -> Cell | str:
    if not speedup:
        return ""
    below = interval(speedup["low"], speedup["high"])
    return Cell(ratio(speedup["ratio"]), speedup["ratio"], [below], speedup["outcome"], brief)


def _seeds(row: SweepRow, key: Literal["score_spread", "raw_spread"], scale: ScoreScale) -> str:
    spread = row.get(key)
    return "" if spread is None else f" ± {scale.change(spread, sign=False)}"


def _setting(name: str, value: object, small: str) -> Cell:
    plain = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    return Cell(MISSING if value is None else by_name(name, value), plain, [small])


def _leaves(values: Mapping[str, Any], above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    found: list[tuple[tuple[str, ...], Any]] = []
    for key, value in values.items():
        found += _leaves(value, (*above, key)) if isinstance(value, Mapping) else [((*above, key), value)]
    return found
