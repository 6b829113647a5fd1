"""The results of the functions: frozen values with a verdict in one sentence and the command's exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..targets.plain import plain

if TYPE_CHECKING:
    from ..export.int8 import Int8
    from ..export.lint.check import Report as LintReport
    from ..export.quantization.samples import Samples
    from ..pipeline.budget.advice import Curve
    from ..pipeline.budget.latency import Latency
    from ..pipeline.budget.table import SegmentTable
    from ..pipeline.budget.timer import Conditions
    from ..pipeline.report.schema import Report
    from ..pipeline.runs.check import Finding
    from ..pipeline.runs.prune_command import Cut
    from ..pipeline.runs.sweep import Swept
    from ..targets.gate.baseline import Baseline
    from ..targets.gate.check import Gated
    from ..targets.memory_fit import Fit, Footprint
    from ..targets.target import Target
    from ..targets.timing.judge import Judgement
    from ..targets.timing.layers import LayerJudgement
    from ..targets.timing.measurement import Measurement
    from ..targets.timing.memory import Memory
    from ..targets.timing.soak_record import Soak as SoakRecord
    from ..targets.timing.soak_summary import Summary

MEANINGS = {
    0: "good",
    1: "slower, refused, or a budget is broken",
    2: "bad input",
    3: "cannot tell, or nothing was measured",
}


@dataclass(frozen=True)
class Result:
    """The result of a function. `deadweight.show(result)` prints the command's output.

    Attributes:
        verdict: the answer in one sentence.
        exit_code: as the command's: 0 good, 1 slower, refused or a budget broken, 3 cannot tell.
    """

    verdict: str
    exit_code: int

    @property
    def meaning(self) -> str:
        """The meaning of the exit code."""
        return MEANINGS[self.exit_code]

    def __str__(self) -> str:
        return self.verdict


@dataclass(frozen=True)
class Layers(Result):
    """The layers of one model, or of two that were judged.

    Attributes:
        judged: one entry per layer; for one model, only its baseline times count.
        only: layers that are in only one of two models, by "baseline" and "candidate".
        pair: whether two models were judged.
        void: why a board's times are invalid; nothing is judged then.
    """

    judged: tuple[LayerJudgement, ...]
    only: Mapping[str, tuple[str, ...]]
    pair: bool
    void: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison(Result):
    """Two models that were timed interleaved, in one process.

    Attributes:
        models: the paths of "baseline" and "candidate".
        measured: the samples of both, with the conditions of the measurement.
        judgement: the answer, the ratio (baseline time over candidate time) and its interval.
        layers: the result for each layer, if asked for.
        remarks: on the engines that were built, if any.
    """

    models: Mapping[str, Path]
    measured: Mapping[str, Measurement]
    judgement: Judgement
    layers: Layers | None = None
    remarks: tuple[str, ...] = ()

    @property
    def void(self) -> tuple[str, ...]:
        """Why a board's times are invalid, and the answer "cannot_tell"; empty if they are not."""
        return self.measured["baseline"].void

    @property
    def outcome(self) -> str:
        """faster, slower, equal or cannot_tell."""
        return self.judgement.outcome

    def to_json(self) -> dict[str, Any]:
        """Plain values: both measurements, the judgement, and the layers if there are any."""
        value: dict[str, Any] = {name: figures.to_json() for name, figures in self.measured.items()}
        value["judgement"] = self.judgement.to_json()
        if self.layers is not None:
            value["layers"] = plain(self.layers.judged)
        return value


@dataclass(frozen=True)
class Profile(Result):
    """One model's times and memory.

    Attributes:
        measured: its samples, with the conditions of the measurement.
        memory: of the process, with ONNX Runtime or on a board; None for an engine here.
        engine_memory: parts of an engine's memory: name, bytes (None: not known), their source.
        inputs: the NPZ file of the inputs; None for random ones.
    """

    model: Path
    measured: Measurement
    memory: Memory | None
    engine_memory: tuple[tuple[str, int | None, str], ...] = ()
    inputs: Path | None = None
    layers: Layers | None = None
    remarks: tuple[str, ...] = ()

    @property
    def void(self) -> tuple[str, ...]:
        """Why a board's times are invalid; empty if they are not."""
        return self.measured.void


@dataclass(frozen=True)
class Gate(Result):
    """Whether a model may replace the accepted one: an outcome for each budget in `gated.checks`.

    `history` is the JSONL file that the settings name for measurements; nothing was written to it.
    """

    model: Path
    gated: Gated
    accepted: Baseline
    history: Path | None


@dataclass(frozen=True)
class Linted(Result):
    """The findings of TensorRT's rules in an ONNX file."""

    report: LintReport


@dataclass(frozen=True)
class MemoryNeed(Result):
    """A model's memory need before it is built, and whether it fits the board, if one was named.

    `free_given` says that the caller gave the free memory; else all memory that the system can use counts.
    `unknown` says why there is no answer for the board that was named.
    """

    footprint: Footprint
    fit: Fit | None
    free_given: bool
    unknown: str = ""


@dataclass(frozen=True)
class Built(Result):
    """An engine that was built, and its record, which is beside the plan as JSON."""

    plan: Path
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Quantized(Result):
    """An ONNX file in INT8; `made.path` is None where TensorRT of the target would refuse it."""

    model: Path
    target: Target
    made: Int8
    samples: Samples
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Pruned(Result):
    """A network that was cut and not tuned.

    Attributes:
        cut: the plan, and figures before and after.
        folder: where the networks are.
        trained: whether the weights came from a file or a recipe, not from `build_model()` alone.
        load: the lines by which the network is loaded in Python.
    """

    cut: Cut
    folder: Path
    score_name: str
    trained: bool
    load: tuple[str, ...] = ()


@dataclass(frozen=True)
class Checked(Result):
    """What `check` found: what is right, notes, and mistakes with their place and cure."""

    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Run(Result):
    """A recipe that was run to its report; networks and pages are in `directory`."""

    report: Report
    directory: Path


@dataclass(frozen=True)
class Sweep(Result):
    """The settings that were tried, and the chosen ones; table and plot are in `directory`."""

    swept: Swept
    score_drop: float
    directory: Path


@dataclass(frozen=True)
class Soak(Result):
    """One model, or two in alternating periods, over minutes or hours.

    Attributes:
        models: the paths of "baseline", "candidate" and the neighbour, "beside".
        soak: all periods, and the conditions.
        summary: latency, tails, energy, memory, verdicts, and what slowed the machine.
    """

    models: Mapping[str, Path]
    soak: SoakRecord
    summary: Summary

    def to_json(self) -> dict[str, Any]:
        """Plain values: the verdict, the summary and every period."""
        costs = [
            {"mode": mode, "load": load, "beside": beside, **one.to_json()}
            for (mode, load, beside), one in self.summary.costs.items()
        ]
        summary = {**plain(replace(self.summary, costs={})), "costs": costs}
        return {"verdict": self.verdict, "summary": summary, "soak": plain(self.soak)}


@dataclass(frozen=True)
class Table(Result):
    """A table of segment times, and how well it predicts.

    Attributes:
        errors: the relative error of each network that was held out.
        covered: the share of them within the interval that the fit states.
        curves: the network's time over the width of each group.
    """

    path: Path
    table: SegmentTable
    latency: Latency
    errors: tuple[float, ...]
    covered: float
    curves: tuple[Curve, ...]

    @property
    def figures(self) -> dict[str, str]:
        """How well it predicts, in words."""
        import numpy as np

        def three(values: Sequence[float]) -> str:
            return (
                " / ".join(f"{100 * part:.1f}" for part in np.quantile(np.abs(values), (0.5, 0.9, 1))) + " %"
            )

        made, factor = self.table, self.latency.factor
        here = made.conditions
        return {
            f"error of {len(self.errors)} networks, median / 90 % / largest": three(self.errors),
            "the same networks timed again": three(made.noise().tolist()),
            "within the stated interval": f"{self.covered:.0%} (x{factor:.3f})",
            "whole network": f"{made.networks[made.network_key(made.dense)] * 1e3:.4g} ms, {here.evidence}",
            "by": ", ".join(filter(None, (here.processor, f"{here.runtime} {here.version}", here.precision))),
            **{
                f"board {one.name} against the first (A/A)": f"{one.ratio:.3f} of its time; single layers "
                f"off that by up to {one.apart:.1%}, the noise explains {one.noise:.1%}"
                for one in made.boards
            },
        }


@dataclass(frozen=True)
class Advice(Result):
    """What a table says of a network: `seconds` predicted, a curve for each group, and sentences."""

    seconds: float
    curves: tuple[Curve, ...]
    said: tuple[str, ...]
    conditions: Conditions
