"""The command `gate`: may this model replace the one that was accepted?"""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..targets.errors import ArtifactError, MeasurementError, RecipeError
from ..terminal.on_board import On, compared, profiled
from ..terminal.options import Inputs, TargetName
from ..terminal.tables import bar, gate_table, out

if TYPE_CHECKING:
    from ..targets.gate.baseline import Baseline
    from ..targets.gate.check import Gated
    from ..targets.runtimes.runtime import Runtime
    from ..targets.timing.measurement import Measurement

_CONFIG = Path("deadweight.toml")


def gate(
    model: Annotated[Path | None, typer.Option(help="The model that is to be let through.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="The baseline's file.")] = None,
    record: Annotated[bool, typer.Option("--record", help="Accept the model: write the baseline.")] = False,
    calibrate: Annotated[
        int,
        typer.Option(min=0, help="Count false alarms over so many A/A runs on this machine, and store them."),
    ] = 0,
    fetch: Annotated[
        str, typer.Option(help="With --record: the command that fetches the model where it is not there.")
    ] = "",
    config: Annotated[Path, typer.Option(help="Budgets and settings.")] = _CONFIG,
    limit: Annotated[float | None, typer.Option(help="Replaces the budget `slowdown`, as a share.")] = None,
    cap_s: Annotated[float | None, typer.Option(help="Seconds after which it stops drawing.")] = None,
    on: On = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the runtime.")] = None,
    batch: Annotated[int | None, typer.Option(help="Samples at once.")] = None,
    inputs: Inputs = None,
    target: TargetName = None,
    junit: Annotated[Path | None, typer.Option(help="Where JUnit XML goes.")] = None,
    summary: Annotated[Path | None, typer.Option(help="A file that a Markdown summary is added to.")] = None,
    history: Annotated[Path | None, typer.Option(help="The JSONL that this measurement is added to.")] = None,
    commit: Annotated[str, typer.Option(help="The commit, for the history.", envvar="GITHUB_SHA")] = "",
) -> None:
    """Hold a model against the accepted one, side by side on this machine, and against the budgets.

    Exit code: 0 every budget is kept, 1 one is broken, 3 it cannot be told, 2 bad input.
    """
    from ..targets.budgets import Budgets
    from ..targets.gate import check as gates
    from ..targets.gate import history as histories
    from ..targets.gate.baseline import old_model, read_baseline, refuse_other_inputs, refuse_other_protocol
    from ..targets.gate.settings import accuracy, read_settings
    from ..targets.timing.inputs import given_inputs

    if config != _CONFIG and not config.is_file():
        raise RecipeError(f"There are no settings at {config}.", "Check the path given to --config.")
    settings, budgets = read_settings(config)
    beside = config.parent
    path = baseline or _given(settings.baseline, beside, "--baseline baseline.json", " --record makes it.")
    store = history or (beside / settings.history if settings.history else None)
    data = beside / settings.data if settings.data else None
    inputs = inputs or (beside / settings.inputs if settings.inputs else None)
    cap = settings.cap_s if cap_s is None else cap_s
    board = _board(target, settings.target, beside)
    if limit is not None:
        if not 0 <= limit < math.inf:
            raise RecipeError(f"The --limit is {limit:g}.", "Give a share of 0 or more: 0.02 is 2 %.")
        budgets = Budgets(**{**vars(budgets), "slowdown": limit})
    if calibrate:
        _calibrate(
            path, runs=calibrate, limit=budgets.slowdown, cap_s=min(cap, 20.0), inputs=inputs, board=board
        )
        return
    model = model or _given(settings.model, beside, "--model MODEL.onnx")
    if record:
        _record(
            model,
            path,
            fetch=fetch,
            commit=commit,
            data=data,
            history=store,
            on=on,
            threads=threads,
            batch=batch,
            inputs=inputs,
            board=board,
        )
        return
    accepted = read_baseline(path)
    refuse_other_protocol(accepted, threads=threads, batch=batch)
    refuse_other_inputs(accepted, given_inputs(inputs))
    old = old_model(accepted, path)
    scores: tuple[float | None, float | None] = (accepted.score, None)
    if data is not None and budgets.score_drop is not None:
        now = accuracy(model, data, board=board)
        scores = (accuracy(old, data, board=board) if old else accepted.score, now)
    kept = histories.read(store) if store is not None and store.exists() else []
    taken = None if on is None else _taken_on(on, old, model, accepted, inputs)
    with bar() as shown:
        gated = gates.check(
            model,
            accepted,
            old,
            budgets=budgets,
            scores=scores,
            history=kept,
            cap_s=cap,
            taken=taken,
            inputs=inputs,
            board=board,
            progress=lambda done, total: shown(done, total, "gate"),
        )
    # The answer first: a history that cannot be written to (a read-only checkout) must not swallow it.
    _tell(gated, accepted, model=model.name, junit=junit, summary=summary)
    if store is not None:
        for name, figures in gated.measured.items():
            verdict = gated.judgement.to_json() if gated.judgement and name == "candidate" else None
            used = gated.memory_bytes if name == "candidate" else None
            line = histories.entry(figures, commit=commit, verdict=verdict, memory_bytes=used)
            histories.append(store, {**line, "name": model.name if name == "candidate" else "baseline"})
    raise typer.Exit(gated.exit_code)


def _board(named: str | None, set_to: str | None, beside: Path) -> Runtime | None:
    """The runtime of the board that the command or deadweight.toml names."""
    from ..targets.target import load_target

    if named is None and set_to is not None:
        named = str(beside / set_to) if set_to.endswith(".toml") else set_to
    return None if named is None else load_target(named).runtime


def _taken_on(
    on: str, old: Path | None, model: Path, accepted: Baseline, inputs: Path | None
) -> dict[str, Measurement]:
    """Both models' times from a board: 48 loads, and a single look."""
    if old is None:
        raise RecipeError(
            f"The accepted model {accepted.model} is not here, so it cannot be sent to {on}.",
            "Bring it back, or record the baseline again with --fetch.",
        )
    protocol = replace(accepted.protocol, events=48)
    measured, _, still = compared(on, old, model, protocol, margin=0.02, until_decided=False, inputs=inputs)
    if not still:
        raise MeasurementError(
            f"{on} did not keep still while the models were timed, so the times are void.",
            "Lock its clocks and let it cool down: deadweight doctor --on says how.",
        )
    return measured


def _given(named: str | None, beside: Path, flag: str, advice: str = "") -> Path:
    if named is None:
        raise RecipeError(
            f"The gate was not told which {flag.split()[0][2:]} to use.",
            f"Give {flag}, or write it under [gate] in deadweight.toml.{advice}",
        )
    return beside / named


def _record(
    model: Path,
    path: Path,
    *,
    fetch: str,
    commit: str,
    data: Path | None,
    history: Path | None,
    on: str | None,
    threads: int | None,
    batch: int | None,
    inputs: Path | None,
    board: Runtime | None,
) -> None:
    from ..targets.gate import history as histories
    from ..targets.gate.baseline import record
    from ..targets.gate.settings import accuracy
    from ..targets.runtimes.open import runtime_of
    from ..targets.timing.inputs import given_inputs
    from ..targets.timing.sequential import sequential_protocol

    score = accuracy(model, data, board=board) if data is not None else None
    protocol = replace(
        sequential_protocol(threads=threads or 1, batch=batch or 1), runtime=runtime_of(model, board).name
    )
    arrays = given_inputs(inputs)
    short = replace(protocol, events=6)
    there = None if on is None else profiled(on, model, short, inputs)[0][model.name]
    with bar() as shown:
        made, measured = record(
            model,
            path,
            protocol=protocol,
            measured=there,
            inputs=arrays,
            fetch=fetch,
            commit=commit,
            score=score,
            progress=lambda done, total: shown(done, total, "record"),
        )
    if history is not None:
        histories.append(history, histories.entry(measured, commit=commit))
    kept = f"fetched by `{fetch}`" if fetch else f"kept at {model}"
    out.print(
        f"Accepted {model.name} ({made.model_sha256[:12]}), {kept}: {path}", soft_wrap=True, markup=False
    )


def _calibrate(
    path: Path,
    *,
    runs: int,
    limit: float | None,
    cap_s: float,
    inputs: Path | None,
    board: Runtime | None,
) -> None:
    from ..targets.artifact import write_json
    from ..targets.budgets import Budgets
    from ..targets.gate.baseline import old_model, read_baseline
    from ..targets.gate.calibrate import calibrate, with_calibration, words

    accepted = read_baseline(path)
    old = old_model(accepted, path)
    if old is None:
        raise RecipeError(
            f"The accepted model {accepted.model} is not here, so the gate cannot be tried on it.",
            "Bring it back, or record the baseline again with --fetch.",
        )
    with bar() as shown:
        found = calibrate(
            old,
            accepted,
            runs=runs,
            budgets=Budgets(slowdown=limit),
            cap_s=cap_s,
            inputs=inputs,
            board=board,
            progress=shown,
        )
    write_json(path, with_calibration(accepted, found).to_json())
    for sentence in words(found):
        out.print(sentence, soft_wrap=True, markup=False)
    out.print(f"Stored in {path}", soft_wrap=True, markup=False)


def _tell(gated: Gated, accepted: Baseline, *, model: str, junit: Path | None, summary: Path | None) -> None:
    from ..targets.gate.report import calibrated_words, markdown, workflow_commands, write_junit

    out.print(gate_table(gated))
    for remark in gated.remarks:
        out.print(f"  {remark}", soft_wrap=True, markup=False)
    machine = next(iter(gated.measured.values())).conditions["machine"]
    out.print(calibrated_words(accepted.calibration, machine), soft_wrap=True, markup=False)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in workflow_commands(gated):
            print(line)
    if junit is not None:
        write_junit(gated, junit, model=model)
    if summary is not None:
        # CI systems hand over a file that others have written to as well.
        try:
            with summary.open("a", encoding="utf-8") as file:
                file.write(markdown(gated, accepted, model=model))
        except OSError as error:
            raise ArtifactError(
                f"The summary {summary} cannot be written to: {error.strerror or error}.",
                "Choose another place with --summary.",
            ) from error
