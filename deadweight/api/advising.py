"""Functions on tables of segment times: measure one, and what it says of a network."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import numpy as np
import onnx

from ..export.onnx_graph.graph import load
from ..pipeline.budget.advice import curves, sentences
from ..pipeline.budget.grids import Network, empty_file
from ..pipeline.budget.latency import of_table
from ..pipeline.budget.measured import check_same, table_of
from ..pipeline.budget.resized import of_file, of_module, unlike
from ..pipeline.budget.table import levels_of, load_table
from ..pipeline.budget.timer import QUICK, Conditions, Together, timer
from ..pipeline.pruning.groups import BLOCKS
from ..pipeline.pruning.trace import trace
from ..pipeline.report.budget_page import write_table_page
from ..pipeline.report.schema import WidthCurve
from ..pipeline.workload import built_model, example_batch
from ..pipeline.workloads.named import load_workload
from ..targets.errors import RecipeError
from ..targets.progress import Progress, silent
from ..targets.remote.on_board import facts_of
from ..targets.remote.ssh import connected
from ..targets.target import Target, load_target, target_of, target_on
from .on_board import how_there
from .results import Advice, Table


def table(
    what: Path | str,
    *,
    target: str | None = None,
    on: str | Sequence[str] | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    networks: int = 60,
    held_out: int = 20,
    out: Path | str | None = None,
    begun: Callable[[str], None] = lambda plan: None,
    progress: Progress = silent,
) -> Table:
    """Measure a table of segment times: how a network's time follows the widths of its layers.

    >>> import deadweight
    >>> found = deadweight.table("original.onnx", networks=16, held_out=4, out="original.table.json")
    >>> found.exit_code, len(found.curves) > 0
    (0, True)

    Args:
        what: an ONNX file, or a workload, "file.py:Name".
        target: a board's name, for the steps of its widths; None for x86-cpu, or for what `on` is.
        on: USER@HOST, to time on a board; several boards of one kind share the timings, after an A/A.
        runtime, precision: there, as in `compare`.
        networks: how many whole networks of random widths the prediction is fitted to.
        held_out: how many more are forecast, and timed twice for the noise.
        out: the file, which is read again where an earlier call was stopped; None for NAME.table.json.
        begun: gets the plan in a sentence before the timing begins.

    Raises:
        DeadweightError: no width can change, the board cannot be reached or was throttled, or `out` is the
            table of another network or machine; boards are unlike, or not in the same state.
    """
    hosts = [on] if isinstance(on, str) else [*(on or ())]
    if twice := sorted({host for host in hosts if hosts.count(host) > 1}):
        raise RecipeError(f"The board {twice[0]} is named twice.", "Name each board once.")
    first = hosts[0] if hosts else None
    board = _target(target, first)
    how = how_there(first, target=target, runtime=runtime, precision=precision)
    network = _of_workload(str(what), board) if ":" in str(what) else of_file(load(Path(what)), board)
    path = (
        Path(out)
        if out is not None
        else Path(f"{Path(str(what).rpartition(':')[2]).stem.lower()}.table.json")
    )
    with ExitStack() as open_until_done:
        timers = {host: open_until_done.enter_context(timer(host, how, board)) for host in hosts or [""]}
        made = table_of(
            network,
            {host: one.together for host, one in timers.items()},
            path,
            runtime=board.here.name,
            networks=networks,
            twice=held_out,
            begun=begun,
            progress=progress,
        )
    found = of_table(made)
    held = [made.drawn(key) for key in made.again]
    true = np.array([made.networks[key] for key in made.again])
    errors = found.predicted(held) / true - 1 if held else found.errors
    covered = float(np.mean(np.abs(np.log1p(errors)) <= np.log(found.factor)))
    drawn = curves(found, made.dense)
    verdict = (
        f"{len(errors)} networks {'held out' if held else 'left out of the fit in turn'} are predicted to "
        f"{np.median(np.abs(errors)):.1%} in the median; the noise is {np.median(made.noise()):.1%}"
    )
    evidence = made.conditions.evidence
    code = 0 if evidence == "measured" else 3
    result = Table(verdict, code, path, made, found, tuple(errors.tolist()), covered, tuple(drawn))
    shown = [cast(WidthCurve, asdict(one)) for one in drawn]
    page = path.with_suffix(".html")
    write_table_page(page, name=path.name, verdict=verdict, curves=shown, figures=result.figures)
    return result


def advise(model: Path | str, *, table: Path | str, on: str | None = None) -> Advice:
    """What a table says of a network: free widths, layers that do not pay, the cost of the next millisecond.

    >>> import deadweight
    >>> made = deadweight.table("original.onnx", networks=16, held_out=4, out="original.table.json")
    >>> found = deadweight.advise("original.onnx", table=made.path)
    >>> found.exit_code, found.seconds > 0
    (0, True)

    Args:
        model: the ONNX file of the table's network, or of one that was cut to widths of the table.
        table: the file that `table` or the stage budget wrote.
        on: USER@HOST or local: the machine must be as it was when the table was measured.

    Raises:
        DeadweightError: the table is of another network, runtime, clock or power mode.
    """
    made = load_table(Path(table))
    widths = made.widths_of(load(Path(model)))
    if on is not None:
        with timer(on, how_there(on, runtime=made.conditions.runtime), load_target("x86-cpu")) as clock:
            check_same(made, _conditions(clock.together, made.conditions), Path(table))
    found = of_table(made)
    now_s = float(found.predicted([widths])[0])
    low_s, high_s = now_s / found.factor, now_s * found.factor
    verdict = f"{now_s * 1e3:.4g} ms predicted, {low_s * 1e3:.4g} to {high_s * 1e3:.4g}"
    code = 0 if made.conditions.evidence == "measured" else 3
    said = tuple(sentences(found, widths))
    return Advice(verdict, code, now_s, tuple(curves(found, widths)), said, made.conditions)


def _conditions(together: Together, like: Conditions) -> Conditions:
    """The conditions of a machine now, from the timing of a file that computes nothing."""
    protocol = replace(QUICK, runtime=like.runtime, threads=like.threads)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "empty.onnx"
        onnx.save(empty_file(), path)
        return Conditions.of(together({"empty": path}, protocol)["empty"])


def _target(target: str | None, on: str | None) -> Target:
    if on is None:
        return load_target(target or "x86-cpu")
    with connected(on) as board:
        facts = facts_of(board)
    return target_on(target, facts) if target else target_of(facts, name=on)


def _of_workload(spec: str, target: Target) -> Network:
    workload = load_workload(spec)
    model, example = unlike(built_model(workload, seed=0)).eval(), example_batch(workload)
    groups = trace(model, example)
    levels = {one.name: levels_of(one.size, one.kinds, target) for one in groups if one.kind not in BLOCKS}
    return of_module(model, groups, levels, example, seed=0, target=target)
