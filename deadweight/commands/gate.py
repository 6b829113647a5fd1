"""The command `gate`: may this model replace the one that was accepted?"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from .. import api
from ..targets.errors import ArtifactError, reported
from ..terminal.options import BoardPrecision, BoardRuntime, Inputs, On, TargetName
from ..terminal.printer import out
from ..terminal.show import show
from ..terminal.tables import bar

if TYPE_CHECKING:
    from ..api.results import Gate, Profile
    from ..targets.gate.settings import GateFiles


def gate(
    model: Annotated[Path | None, Option(help="Candidate model (ONNX or engine).")] = None,
    baseline: Annotated[Path | None, Option(help="The baseline's file.")] = None,
    record: Annotated[bool, Option("--record", help="Accept the model: write the baseline.")] = False,
    calibrate: Annotated[
        int, Option(min=0, help="Count false alarms in this many A/A runs on this machine, and store them.")
    ] = 0,
    fetch: Annotated[
        str, Option(metavar="CMD", help="Command that fetches the accepted model where it is missing.")
    ] = "",
    config: Annotated[Path, Option(help="Budgets and settings.")] = Path("deadweight.toml"),
    limit: Annotated[float | None, Option(help="Replaces the budget `slowdown`, as a share.")] = None,
    cap_s: Annotated[float | None, Option(help="Time limit in seconds.")] = None,
    on: On = None,
    threads: Annotated[int | None, Option(help="Threads of the runtime.")] = None,
    batch: Annotated[int | None, Option(help="Batch size.")] = None,
    inputs: Inputs = None,
    target: TargetName = None,
    runtime: BoardRuntime = None,
    precision: BoardPrecision = None,
    junit: Annotated[Path | None, Option(help="Output file for JUnit XML.")] = None,
    summary: Annotated[Path | None, Option(help="File to append a Markdown summary to.")] = None,
    history: Annotated[Path | None, Option(help="JSONL file to append this measurement to.")] = None,
    commit: Annotated[str, Option(help="The commit, for the history.", envvar="GITHUB_SHA")] = "",
) -> None:
    """Compare a model with the accepted one, timed interleaved on this machine, and with the budgets.

    Exit code: 0 every budget is kept, 1 one is broken, 3 cannot tell, 2 bad input.
    """
    from ..targets.gate import history as histories
    from ..targets.gate.settings import gate_files

    if calibrate or record:
        files = gate_files(
            config, model=model, baseline=baseline, inputs=inputs, history=history, limit=limit, target=target
        )
        if calibrate:
            cap = min(files.settings.cap_s if cap_s is None else cap_s, 20.0)
            _calibrate(files, runs=calibrate, cap_s=cap, fetch=fetch)
        else:
            there = None
            if on is not None:
                with bar() as shown:
                    there = api.profile(
                        files.required("model"),
                        events=6,
                        threads=threads or 1,
                        batch=batch or 1,
                        inputs=files.inputs,
                        on=on,
                        target=target,
                        runtime=runtime,
                        precision=precision,
                        progress=shown,
                    )
            _record(files, there, commit=commit, threads=threads or 1, batch=batch or 1)
        return
    with bar() as shown:
        found = api.gate(
            model,
            baseline=baseline,
            config=config,
            limit=limit,
            fetch=fetch,
            cap_s=cap_s,
            threads=threads,
            batch=batch,
            inputs=inputs,
            history=history,
            on=on,
            target=target,
            runtime=runtime,
            precision=precision,
            progress=shown,
        )
    # The answer first: a history that cannot be written to (a read-only checkout) must not hide it.
    _report(found, junit=junit, summary=summary)
    if found.history is not None:
        gated, name = found.gated, found.model.name
        for role, figures in gated.measured.items():
            candidate = role == "candidate"
            line = histories.entry(
                figures,
                commit=commit,
                verdict=gated.judgement.to_json() if gated.judgement and candidate else None,
                memory_bytes=gated.memory_bytes if candidate else None,
            )
            histories.append(found.history, {**line, "name": name if candidate else "baseline"})
    raise typer.Exit(found.exit_code)


def _record(files: GateFiles, there: Profile | None, *, commit: str, threads: int, batch: int) -> None:
    from ..targets.gate import history as histories
    from ..targets.gate.baseline import record
    from ..targets.gate.settings import accuracy_apart
    from ..targets.runtimes.open import runtime_of
    from ..targets.timing.inputs import given_inputs
    from ..targets.timing.sequential import sequential_protocol

    model, path = files.required("model"), files.required("baseline")
    score = None
    if files.data is not None:
        score = accuracy_apart(model, files.data, board=files.board, cap_s=files.settings.cap_s)
    runtime = runtime_of(model, files.board)
    protocol = replace(sequential_protocol(threads=threads, batch=batch), runtime=runtime.name)
    with bar() as shown:
        made, measured = record(
            model,
            path,
            protocol=protocol,
            measured=None if there is None else there.measured,
            inputs=given_inputs(files.inputs),
            commit=commit,
            score=score,
            progress=lambda done, total: shown(done, total, "record"),
        )
    if files.history is not None:
        histories.append(files.history, histories.entry(measured, commit=commit))
    out.say(f"Accepted {model.name} ({made.model_sha256[:12]}), kept at {model}: {path}")


def _calibrate(files: GateFiles, *, runs: int, cap_s: float, fetch: str) -> None:
    from ..targets.artifact import write_json
    from ..targets.budgets import Budgets
    from ..targets.gate.baseline import old_model, read_baseline
    from ..targets.gate.calibrate import calibrate
    from ..targets.gate.report import calibration_sentence

    path = files.required("baseline")
    accepted = read_baseline(path)
    old = old_model(accepted, path, fetch=fetch)
    with bar() as shown:
        found = calibrate(
            old,
            accepted,
            runs=runs,
            budgets=Budgets(slowdown=files.budgets.slowdown),
            cap_s=cap_s,
            inputs=files.inputs,
            board=files.board,
            progress=lambda done, total: shown(done, total, "calibrate"),
        )
    write_json(path, replace(accepted, calibration=found).to_json())
    out.say(calibration_sentence(found, found["machine"]))
    out.say(f"Stored in {path}")


def _report(found: Gate, *, junit: Path | None, summary: Path | None) -> None:
    from ..targets.gate.report import markdown, workflow_commands, write_junit

    show(found)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for line in workflow_commands(found.gated):
            out.command(line)
    if junit is not None:
        write_junit(found.gated, junit, model=found.model.name)
    if summary is not None:
        # The file of a CI system also has the summaries of other steps.
        what, cure = f"The summary {summary} cannot be written to", "Choose another file with --summary."
        with reported(ArtifactError, what, cure), summary.open("a", encoding="utf-8") as file:
            file.write(markdown(found.gated, found.accepted, model=found.model.name))
