"""The function `gate`: may a model replace the accepted one?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..targets.errors import RecipeError
from ..targets.gate import check as gates
from ..targets.gate.baseline import (
    Baseline,
    old_model,
    read_baseline,
    refuse_other_inputs,
    refuse_other_protocol,
    refuse_other_runtime,
)
from ..targets.gate.settings import accuracy, accuracy_apart, gate_files
from ..targets.progress import Progress, silent
from ..targets.remote.board import compare_on, predict_on
from ..targets.remote.on_board import HowThere, ready_on, runtime_there
from ..targets.remote.ssh import connected
from ..targets.runtimes.runtime import is_engine
from ..targets.timing.inputs import given_inputs
from ..targets.timing.measurement import Measurement
from .latency import labelled, optional_path
from .on_board import how_there
from .results import Gate
from .soaking import energy


def gate(
    model: Path | str | None = None,
    *,
    baseline: Path | str | None = None,
    config: Path | str = "deadweight.toml",
    limit: float | None = None,
    fetch: str = "",
    cap_s: float | None = None,
    threads: int | None = None,
    batch: int | None = None,
    inputs: Path | str | None = None,
    history: Path | str | None = None,
    on: str | None = None,
    target: str | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    progress: Progress | None = None,
) -> Gate:
    """Compare a model with the accepted one, timed interleaved, and with the budgets of deadweight.toml.

    >>> import deadweight
    >>> found = deadweight.gate("pruned.onnx", baseline="baseline.json", limit=0.05)
    >>> found.exit_code, [check.outcome for check in found.gated.checks]
    (0, ['pass'])

    Args:
        model, baseline, inputs, history: paths; None for those of `[gate]` in the settings.
        config: budgets and settings, see docs/judgement.md.
        limit: replaces the budget `slowdown`, as a share.
        fetch: command that puts a missing accepted model in place; run without a shell.
        cap_s: time limit in seconds.
        threads, batch, precision: refused if they are not those of the baseline.
        on, runtime: as `compare`; the baseline must have been recorded on that runtime.

    Raises:
        DeadweightError: there is no baseline, it is of another protocol, or a model cannot be timed.
    """
    files = gate_files(
        Path(config),
        model=optional_path(model),
        baseline=optional_path(baseline),
        inputs=optional_path(inputs),
        history=optional_path(history),
        limit=limit,
        target=target,
    )
    path, candidate, shown = files.required("baseline"), files.required("model"), progress or silent
    if on is None and runtime:
        raise RecipeError("--runtime is for a board, and none is named.", "Give --on USER@HOST, or local.")
    accepted = read_baseline(path)
    refuse_other_protocol(accepted, threads=threads, batch=batch, precision=precision)
    refuse_other_inputs(accepted, given_inputs(files.inputs))
    old = old_model(accepted, path, fetch=fetch)
    scores: tuple[float | None, float | None] = (accepted.score, None)
    cap = files.settings.cap_s if cap_s is None else cap_s
    data = files.data if files.budgets.score_drop is not None else None
    if data is not None and on is None:
        score = partial(accuracy_apart, data=data, board=files.board, cap_s=cap)
        scores = (score(old), score(candidate))
    how = how_there(
        on,
        target=target,
        runtime=runtime,
        precision=precision or (on and accepted.protocol.precision) or None,
    )
    taken = None
    if on is not None:
        taken, there = _on_board(on, how, old, candidate, accepted, files.inputs, data, shown)
        scores = there or scores
    spent = None
    if files.budgets.energy_j is not None:
        spent = energy(
            candidate,
            threads=accepted.protocol.threads,
            batch=accepted.protocol.batch,
            inputs=files.inputs,
            on=on,
            target=target,
            runtime=runtime,
            precision=(precision or accepted.protocol.precision or None) if on else None,
            progress=shown,
        )
    gated = gates.check(
        candidate,
        accepted,
        old,
        budgets=files.budgets,
        scores=scores,
        cap_s=cap,
        taken=taken,
        inputs=files.inputs,
        board=files.board,
        energy=spent,
        progress=labelled(shown, "gate"),
    )
    answer = {0: "pass", 1: "fail", 3: "cannot_tell"}[gated.exit_code]
    names = ", ".join(one.name for one in gated.checks if one.outcome == answer)
    verdict = f"{answer.replace('_', ' ')}: {names}"
    return Gate(verdict, gated.exit_code, candidate, gated, accepted, files.history)


def _on_board(
    on: str,
    how: HowThere,
    old: Path,
    model: Path,
    accepted: Baseline,
    inputs: Path | None,
    data: Path | None,
    progress: Progress,
) -> tuple[Mapping[str, Measurement], tuple[float, float] | None]:
    """Both models' times from a board, 48 loads, judged once; and both scores there, with data."""
    protocol, scores = replace(accepted.protocol, events=48), None
    models = {"baseline": old, "candidate": model}
    with connected(on, progress) as there:
        if not is_engine(model):  # before anything is built
            runs = runtime_there(there, how)[0]
            precision = how.settings.precision if runs.builds else ""
            refuse_other_runtime(accepted, model, replace(protocol, runtime=runs.name, precision=precision))
        built = partial(ready_on, there, models, how, batch=protocol.batch, inputs=inputs)
        ready = built()
        refuse_other_runtime(accepted, model, ready.protocol(protocol))
        timed, _ = compare_on(there, ready, protocol=protocol, margin=0.02, inputs=inputs)
        if data is not None:
            ready = built(scores=True)
            was, now = (accuracy(models[one], data, predict=predict_on(there, ready, one)) for one in models)
            scores = was, now
    return timed.measurements, scores
