"""The gate's checks: a model is compared with the accepted model and with the budgets.

The baseline is the accepted model, not a number: both models are timed interleaved on this machine, because
comparing with a stored time of another process calls a quarter to a half of all equal models slower
(docs/judgement.md).

Each budget has one of three outcomes. `fail`: the whole interval is beyond the limit. `pass`: the whole
interval is within. `cannot_tell`: neither, and the exit code is not 0. The error of repeated looks is
accounted for (`sequential`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import List, Mapping, Optional, Tuple

from ..budgets import Budgets
from ..onnx_file import files_of, model_sha256
from ..progress import Counted
from ..runtimes.open import runtime_of
from ..runtimes.runtime import Runtime
from ..timing.inputs import given_inputs
from ..timing.judge import Judgement, fewest_events, judge, unproven
from ..timing.measurement import Measurement
from ..timing.memory import measure_memory
from ..timing.sequential import CONFIDENCE, compare_until_decided, slowdown
from ..timing.soak_summary import Energy
from ..timing.tail import needed_samples, tail_of
from .baseline import Baseline, refuse_other_inputs, refuse_other_runtime

SLOWDOWN = 0.02
"""The default limit: the change that does not matter."""
_TIMED = ("slowdown", "latency_s", "p99_s")


@dataclass(frozen=True)
class Check:
    """One budget's outcome, with the value and its interval where it has one."""

    name: str
    outcome: str
    """`pass`, `fail` or `cannot_tell`."""
    limit: float
    value: Optional[float]
    low: Optional[float]
    high: Optional[float]
    sentence: str


@dataclass(frozen=True)
class Gated:
    """All outcomes of one run of the gate."""

    checks: Tuple[Check, ...]
    against: str
    """`side by side` or `the same bytes`."""
    judgement: Optional[Judgement]
    measured: Mapping[str, Measurement]
    memory_bytes: Optional[int]
    remarks: Tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0: every budget is met; 1: one is broken; 3: none is broken, but one is `cannot_tell`."""
        outcomes = {check.outcome for check in self.checks}
        return 1 if "fail" in outcomes else 3 if "cannot_tell" in outcomes else 0


def check(
    model: Path,
    baseline: Baseline,
    old: Path,
    *,
    budgets: Budgets,
    scores: Tuple[Optional[float], Optional[float]] = (None, None),
    cap_s: float = 60.0,
    taken: Optional[Mapping[str, Measurement]] = None,
    inputs: Optional[Path] = None,
    board: Optional[Runtime] = None,
    energy: Optional[Energy] = None,
    by_bytes: bool = True,
    progress: Optional[Counted] = None,
) -> Gated:
    """Compares a model with the accepted one and checks the budgets.

    The accepted model itself, byte for byte, is not slower: nothing is timed for that, unless `by_bytes` is
    false, and `measured` is empty without a budget for a time of its own. `scores` are those of `old`, the
    accepted model, and of the candidate. `taken` are measurements of both, `baseline` and `candidate`, from
    elsewhere (a board). `inputs` is the NPZ file with which the baseline was recorded, if any. `board` is the
    runtime of the board that the user named; a baseline only names its runtime, and loads no code. `energy`
    is the candidate's.

    Raises:
        ModelError, MeasurementError: it cannot be timed, or the baseline was recorded with other inputs.
        TargetError: it runs on another runtime than the accepted model.
    """
    protocol = replace(baseline.protocol, cap_s=cap_s)
    runtime = runtime_of(model, board)
    if taken is None:
        refuse_other_runtime(baseline, model, replace(protocol, runtime=runtime.name, precision=""))
    arrays = given_inputs(inputs)
    refuse_other_inputs(baseline, arrays)
    limit = SLOWDOWN if budgets.slowdown is None else budgets.slowdown
    samples = needed_samples(99) if budgets.p99_s is not None else 0
    judgement: Optional[Judgement] = None
    same = by_bytes and taken is None and model_sha256(model) == baseline.model_sha256
    measured: Mapping[str, Measurement] = {}
    if same and budgets.latency_s is None and budgets.p99_s is None:
        pass  # there is nothing to time
    elif taken is not None:
        measured = taken
        judgement = judge(measured["baseline"], measured["candidate"], margin=limit, confidence=CONFIDENCE)
    else:
        compared = compare_until_decided(
            old,
            Path(model),
            protocol=protocol,
            decided=lambda found, so_far: (
                _outcome(slowdown(found)[1:], limit) != "cannot_tell"
                and so_far["candidate"].wall_ns.size >= samples
            ),
            inputs=arrays,
            progress=progress,
        )
        measured, judgement = dict(compared.measured), compared.judgement
    against = "the same bytes" if same else "side by side"
    checks: List[Check] = []
    remarks: List[str] = []
    if judgement is not None and not same:
        checks, remarks = [_slowdown_check(judgement, limit)], [*judgement.remarks]
    candidate = measured.get("candidate")
    if checks and checks[0].outcome == "cannot_tell":
        remarks.append(
            f"to decide, stop other programs, or use more time (--cap-s) or a limit above {limit:g} (--limit)"
        )
    if (
        against == "side by side"
        and candidate is not None
        and candidate.conditions["machine"] != baseline.machine
    ):
        remarks.append(
            f"the baseline was recorded on another machine ({baseline.machine.get('cpu')}); both models were "
            "timed on this one"
        )
    memory = None
    if budgets.memory_bytes is not None and taken is None and not runtime.builds:
        memory = measure_memory(
            model, runtime=runtime, threads=protocol.threads, batch=protocol.batch, inputs=inputs
        ).resident_bytes
    size = candidate.file_bytes if candidate else sum(one.stat().st_size for one in files_of(Path(model)))
    checks += _absolute_checks(budgets, candidate, memory_bytes=memory, file_bytes=size)
    reason = unproven(*measured.values())
    if reason:
        checks = [_cannot_tell(one, reason) if one.name in _TIMED else one for one in checks]
    if budgets.energy_j is not None:
        checks.append(_energy_check(budgets.energy_j, energy))
    if same:
        words = "0 % more time: it is the accepted model, byte for byte"
        checks.insert(0, Check("slowdown", "pass", limit, 0.0, 0.0, 0.0, words))
    if budgets.score_drop is not None:
        checks.append(_score_check(budgets.score_drop, *scores))
    return Gated(tuple(checks), against, judgement, measured, memory, tuple(remarks))


def _absolute_checks(
    budgets: Budgets, candidate: Optional[Measurement], *, memory_bytes: Optional[int], file_bytes: int
) -> List[Check]:
    checks = []
    if budgets.latency_s is not None and candidate is not None:
        middle = candidate.latency_s(50)
        words = f"p50 {1e3 * middle.value:.4g} ms ({1e3 * middle.low:.4g} to {1e3 * middle.high:.4g} ms)"
        outcome = _outcome((middle.low, middle.high), budgets.latency_s)
        median = Check("latency_s", outcome, budgets.latency_s, middle.value, middle.low, middle.high, words)
        fewest = fewest_events(0.95)  # the interval of one event is a point
        few = "" if candidate.events >= fewest else f"{candidate.events} events, and {fewest} are needed"
        checks.append(_cannot_tell(median, few) if few else median)
    if budgets.p99_s is not None and candidate is not None:
        tail = tail_of(candidate, 99)
        high = tail.bound_s if math.isfinite(tail.bound_s) else None
        outcome = _outcome((tail.low_s, tail.bound_s), budgets.p99_s)
        checks.append(Check("p99_s", outcome, budgets.p99_s, tail.value_s, tail.low_s, high, tail.sentence()))
    for name, limit, value in (
        ("memory_bytes", budgets.memory_bytes, memory_bytes),
        ("file_bytes", budgets.file_bytes, file_bytes),
    ):
        if limit is not None and value is None:
            checks.append(Check(name, "cannot_tell", limit, None, None, None, "not measured"))
        elif limit is not None and value is not None:
            outcome = "pass" if value <= limit else "fail"
            checks.append(Check(name, outcome, limit, value, value, value, f"{value / 1e6:.3f} MB"))
    return checks


def _slowdown_check(judgement: Judgement, limit: float) -> Check:
    value, low, high = slowdown(judgement)
    words = (
        f"{_more(value)} time ({_signed(low)} to {_signed(high)}, "
        f"{100 * judgement.confidence:.3g} % confidence, {judgement.events} events)"
    )
    finite = high if math.isfinite(high) else None
    return Check("slowdown", _outcome((low, high), limit), limit, value, low, finite, words)


def _cannot_tell(check: Check, reason: str) -> Check:
    return replace(check, outcome="cannot_tell", sentence=f"{reason}; {check.sentence}")


def _energy_check(limit: float, energy: Optional[Energy]) -> Check:
    if energy is None or energy.j is None:
        words = "energy was not measured" if energy is None else energy.sentence()
        return Check("energy_j", "cannot_tell", limit, None, None, None, words)
    value, low, high = energy.j.value, energy.j.low, energy.j.high
    return Check("energy_j", _outcome((low, high), limit), limit, value, low, high, energy.sentence())


def _score_check(limit: float, old: Optional[float], new: Optional[float]) -> Check:
    if old is None or new is None:
        missing = "the accepted model has no score" if old is None else "no data to score on"
        return Check("score_drop", "cannot_tell", limit, None, None, None, missing)
    drop = old - new
    outcome = "pass" if drop <= limit + 1e-12 else "fail"
    return Check("score_drop", outcome, limit, drop, drop, drop, f"score {new:.4f}, was {old:.4f}")


def _outcome(interval: Tuple[float, float], limit: float) -> str:
    low, high = interval
    return "fail" if low > limit else "pass" if high <= limit else "cannot_tell"


def _more(share: float) -> str:
    return f"{100 * abs(share):.1f} % {'more' if share > 0 else 'less'}"


def _signed(share: float) -> str:
    return f"{100 * share:+.1f} %" if math.isfinite(share) else "unbounded"
