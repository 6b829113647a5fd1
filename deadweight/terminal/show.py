"""Terminal output of each result of `api`, as renderables."""

from __future__ import annotations

import shlex
from functools import singledispatch
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from ..api import results
from .printer import out
from .tables import (
    curves_table,
    gate_table,
    judgement_line,
    layers_table,
    lint_lines,
    measurement_table,
    megabytes,
    memory_line,
)

SHOWN = 5  # errors and warnings of a build


def show(result: results.Result) -> None:
    """Prints a result to stdout."""
    for line in lines(result):
        out.print(line, soft_wrap=isinstance(line, str | Text))


def _invalid(void: tuple[str, ...]) -> list[RenderableType]:
    """Why a board's times are invalid, and what to do."""
    from ..targets.timing.measurement import CALM

    return [Text(f"Invalid: {'; '.join(void)}; {CALM}.")] if void else []


@singledispatch
def lines(result: results.Result) -> list[RenderableType]:
    """The printed lines of a result, from top to bottom; text is not wrapped, tables are."""
    return [Text(result.verdict)]


@lines.register
def _(result: results.Comparison) -> list[RenderableType]:
    from ..targets.timing.measurement import timed_by

    return [
        *_invalid(result.void),
        *(Text(f"{role:<9} {path}") for role, path in result.models.items()),
        measurement_table(result.measured),
        *(Text(f"{remark}.") for remark in result.remarks),
        Text(timed_by(result.measured)),
        judgement_line(result.judgement),
        *([] if result.layers is None else lines(result.layers)),
    ]


@lines.register
def _(result: results.Layers) -> list[RenderableType]:
    if result.void:
        return _invalid(result.void)
    shown: list[RenderableType] = [layers_table(result.judged, judging=result.pair)]
    if result.pair:
        shown.append(Text("Intervals hold for all layers together; * marks layers that have fewer weights."))
        shown += [Text(f"Only in the {name}: {', '.join(own)}") for name, own in result.only.items()]
    return [*shown, *(Text(f"  {one.name}: {one.reason}") for one in result.judged if one.reason)]


@lines.register
def _(result: results.Profile) -> list[RenderableType]:
    from ..targets.machine.probe import not_known
    from ..targets.timing.measurement import marked_words, timed_by
    from ..targets.timing.tail import tail_of

    figures = result.measured
    shown = _invalid(result.void)
    shown.append(measurement_table({result.model.name: figures}))
    shown += [Text(tail_of(figures, percent).sentence()) for percent in (99, 99.9)]
    if figures.runs > 1:
        shown.append(
            Text(f"Each sample is the mean of {figures.runs} runs: the tail of single runs is longer.")
        )
    if result.memory is not None:
        shown.append(Text(memory_line(result.memory)))
    for name, size, how in result.engine_memory:
        known = "not known" if size is None else megabytes(size)
        shown.append(Text(f"memory, {name}: {known} ({how})"))
    shown += [Text(f"{remark}.") for remark in result.remarks]
    words = timed_by({result.model.name: figures})
    shown.append(Text(words if result.inputs is None else f"{words}, inputs of {result.inputs.name}"))
    shown += [Text(f"{figures.conditions['times']}.")] if "times" in figures.conditions else []
    shown += [Text(f"Not known: {clause}.") for clause in not_known(figures.conditions)]
    if marked := marked_words(figures):
        shown.append(Text(f"{marked}. Stop other work and measure again."))
    return [*shown, *([] if result.layers is None else lines(result.layers))]


@lines.register
def _(result: results.Gate) -> list[RenderableType]:
    from ..targets.gate.report import calibration_sentence
    from ..targets.timing.measurement import timed_by

    measured = result.gated.measured
    machine = next((one.conditions["machine"] for one in measured.values()), result.accepted.machine)
    return [
        gate_table(result.gated),
        *([Text(timed_by(measured))] if measured else []),
        *(Text(f"  {remark}") for remark in result.gated.remarks),
        Text(calibration_sentence(result.accepted.calibration, machine)),
    ]


@lines.register
def _(result: results.Linted) -> list[RenderableType]:
    return lint_lines(result.report)


@lines.register
def _(result: results.MemoryNeed) -> list[RenderableType]:
    need, answer = result.footprint, result.fit
    most = "not known" if need.high_bytes is None else megabytes(need.high_bytes)
    shown: list[RenderableType] = [
        Text(
            f"{megabytes(need.low_bytes)} at least, {most} at most, at batch {need.batch} in {need.runtime}"
        ),
        *([Text(f"The minimum is reached at {need.peak_at}.")] if need.peak_at else []),
    ]
    if answer is None:
        return [*shown, Text(result.unknown)] if result.unknown else shown
    shown += [Text(words) for words in answer.words]
    if not result.free_given:
        free = "All memory that the board's system can use counts as free; --free-bytes sets the value."
        shown.append(Text(free))
    return [*shown, Text(answer.outcome.replace("_", " "), style="bold")]


@lines.register
def _(result: results.Built) -> list[RenderableType]:
    record, plan = result.record, result.plan
    built, findings, device = record["tensorrt"], record["findings"], record["device"]
    gpu = "a GPU that could not be asked" if device is None else f"SM {device['compute_capability']}"
    typed = "strongly typed" if built["strongly_typed"] else f"flags {', '.join(record['flags']) or 'none'}"
    shown: list[RenderableType] = [
        Text.assemble(
            (str(plan), "bold"),
            f": {megabytes(record['plan']['bytes'])}, {built['flavour']} {built['version']} for {gpu}, "
            f"{typed}, built in {record['build_s']:.1f} s",
        )
    ]
    shown.append(
        Text(f"  from {Path(record['model']['file']).name}, precision {record['settings']['precision']}")
    )
    if record["evidence"] != "measured":
        says = ": this engine proves nothing about speed."
        shown.append(Text.assemble((record["evidence"], "red"), says))
    shown += [f"  {name.replace('_', ' ')}: {megabytes(size)}" for name, size in findings["bytes"].items()]
    shown.append(f"  reformats: {findings['reformats']}, fallbacks from DLA: {len(findings['fallbacks'])}")
    if findings["skipped_tactics"]:
        shown.append(f"  {findings['skipped_tactics']} kernels were not tried: not enough memory")
    if findings.get("sparse_layers") is not None:
        shown.append(
            f"  2:4: {findings['sparse_layers']} layers have the pattern, {findings['sparse_kernels'] or 0} "
            "use a kernel for it; for the others a dense one is faster"
        )
    for kind in ("errors", "warnings"):
        texts = [" ".join(text.split())[:300] for text in findings[kind]]
        shown += [Text(f"  {kind[:-1]}: {text}") for text in texts[:SHOWN]]
        if len(texts) > SHOWN:
            shown.append(f"  and {len(texts) - SHOWN} {kind} more, in the log")
    if record.get("fit"):
        shown.append(f"  memory: {record['fit']['outcome'].replace('_', ' ')}")
    used = "from the cache" if record["timing_cache"]["used"] else "measured"
    return [*shown, f"  kernel timings: {used}", Text(f"The record: {plan}.json, the log: {plan}.log")]


@lines.register
def _(result: results.Quantized) -> list[RenderableType]:
    from .stage_tables import int8_facts

    made = result.made
    facts = int8_facts(made, model=result.model, target=result.target, words=result.remarks)
    shown: list[RenderableType] = [facts]
    if made.lint is not None:
        shown += lint_lines(made.lint)
    if made.path is None:
        return [*shown, Text("Nothing was written.")]
    ask = f"deadweight compare {shlex.join((str(result.model), str(made.path)))}"
    if result.target.runtime.builds:
        ask += " --on USER@HOST (builds both there, and times the engines)"
    return [
        *shown,
        Text(f"The network: {made.path}"),
        Text("No score was measured, because samples have no labels: a recipe has a score and a budget."),
        Text(f"Whether it is faster was not measured: {ask}"),
    ]


@lines.register
def _(result: results.Pruned) -> list[RenderableType]:
    from ..pipeline.runs.prune_command import AFTER, BEFORE
    from .stage_tables import cut_facts, widths_table

    shown: list[RenderableType] = []
    if not result.trained:
        shown.append(
            Text("The network is as build_model() returns it: give --weights if it is not trained there.")
        )
    shown.append(widths_table(result.cut))
    if result.cut.after is None:
        return [*shown, Text("Nothing was removed by these settings, so nothing was written: raise them.")]
    before, after = result.folder / BEFORE, result.folder / AFTER
    pair = shlex.join((str(before), str(after)))
    return [
        *shown,
        cut_facts(result.cut, score_name=result.score_name),
        Text(f"The networks: {before}, {after}"),
        Text("In Python:"),
        *(Text(f"  {line}") for line in result.load),
        Text(f"Whether it is faster was not measured: deadweight compare {pair}"),
    ]


@lines.register
def _(result: results.Checked) -> list[RenderableType]:
    colours = {"ok": "green", "note": "yellow", "mistake": "bold red"}
    shown: list[RenderableType] = []
    for one in result.findings:
        where = f"{one.where}: " if one.where else ""
        shown.append(Text.assemble((f"{one.kind:<8}", colours[one.kind]), f"{one.step}: {where}{one.what}"))
        shown += [Text(f"        What to do: {one.cure}")] if one.cure else []
    return [*shown, Text(result.verdict, style="bold")]


@lines.register
def _(result: results.Run) -> list[RenderableType]:
    from ..pipeline.report.terminal import summary_table, verdict_line

    return [
        summary_table(result.report),
        *result.report.get("words", []),
        verdict_line(result.report),
        Text(f"The networks: {result.directory / 'networks'}"),
        Text(f"The report: {result.directory / 'report.html'}"),
    ]


@lines.register
def _(result: results.Sweep) -> list[RenderableType]:
    from ..pipeline.report.terminal import sweep_table

    swept = result.swept
    shown: list[RenderableType] = [sweep_table(swept.sweep, swept.scale)]
    shown += [Text(sentence) for sentence in swept.sweep.get("words", [])]
    shown += [Text(f"Refused: {reason}") for reason in swept.refused]
    if not swept.chosen:
        shown.append(Text(f"No setting keeps the score within {result.score_drop}."))
    return [*shown, Text(f"Table and plot: {result.directory / 'sweep.html'}, sweep.csv, sweep.json")]


@lines.register
def _(result: results.Soak) -> list[RenderableType]:
    from .soak_lines import soak_lines

    return soak_lines(result)


@lines.register
def _(result: results.Table) -> list[RenderableType]:
    return [
        *(Text(f"{name}: {value}") for name, value in result.figures.items()),
        curves_table(result.curves),
        Text(f"The table: {result.path}, its cliffs as plots: {result.path.with_suffix('.html')}"),
    ]


@lines.register
def _(result: results.Advice) -> list[RenderableType]:
    here = result.conditions
    return [
        Text(f"{result.verdict} ({here.evidence} on {here.processor} by {here.runtime} {here.version})"),
        curves_table(result.curves),
        *(Text(f"- {one}") for one in result.said),
    ]
