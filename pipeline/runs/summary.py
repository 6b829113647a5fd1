"""Makes the content of report.json from a finished run: rows, controls, widths, budgets and the verdict.

The verdict is about the network to ship, see shipping.py. Only measured times enter it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ...export.lint.check import gpu_fallbacks
from ...export.release.delta import sent_bytes
from ...targets.artifact import read_json, utc_now
from ...targets.budgets import check_budgets
from ...targets.machine.probe import conditions
from ...targets.timing import measurement
from ...targets.timing.judge import Judgement, judge, unproven
from ...targets.timing.judge import exit_code as outcome_code
from ...targets.timing.measurement import Measurement
from ...targets.timing.tail import tail_of
from ..importance.activations import ActivationStatistics
from ..recipe import Recipe
from ..report.schema import (
    Budget,
    Control,
    Latency,
    Layer,
    LayerVerdict,
    Outcome,
    Report,
    Row,
    Search,
    UnitLists,
    Verdict,
    Width,
)
from ..report.units import ScoreScale, capital
from ..report.words import control_sentences, label, sparse_sentences, verdict_sentence
from ..work import Variant, Work
from .cache import Run, made_by
from .shipping import broken_budgets, choose
from .sweep import Swept, bounds, speedup


def summarize(recipe: Recipe, work: Work, run: Run, swept: Swept | None) -> Report:
    times, held = work.artifacts.get("measurements"), work.artifacts.get("memory")
    measured = measurement.load(times.checked()) if times else {}
    first = next(iter(measured.values()), None)
    memory = read_json(held.checked()) if held else {}
    scored = read_json(work.artifacts["scores_test"].checked())
    made = {v.name: _row(v, scored["scores"][v.name], measured, memory) for v in work.variants}
    rows = [made[v.name] for v in work.variants if v.role == "chain"]
    controls = [cast(Control, made[v.name]) for v in work.variants if v.role == "control"]
    higher = work.workload.higher_is_better
    scores = [row["score"] for row in (*rows, *controls)]
    scale = ScoreScale.of(work.workload.score_name, higher_is_better=higher, scores=scores)
    words = control_sentences(rows, controls, scale, n=scored["samples"])
    for control, sentence in zip(controls, words, strict=True):
        control["words"] = sentence
    energy = _energy(work)
    budgets = {
        row["name"]: _budgets(recipe, work, rows[0], row, measured, energy) for row in rows[1:] or rows
    }
    for row in rows:
        if broken := broken_budgets(budgets.get(row["name"], ()), scale):
            row["broken"] = broken
    choice = choose(rows, budgets, measured, scale)
    return {
        "schema": 1,
        "name": recipe.path.stem,
        "created": utc_now(),
        "verdict": _verdict(choice.candidate, measured),
        "ship": {"network": choice.network, "sentence": choice.sentence},
        "rows": rows,
        "controls": controls,
        "words": [
            *words,
            *_sparse(work, rows),
            *(
                f"{label(name)}: {sentence}."
                for name in ("int8", "qat")
                if name in work.artifacts
                for sentence in read_json(work.artifacts[name].checked())["words"]
            ),
            *int8_sentences(measured),
            *time_sentences(choice.candidate, measured),
            *(f"{label(name)}: {one['sentence']}." for name, one in energy.items()),
            *(swept.refused if swept else ()),
        ],
        "widths": _widths(work),
        "layers": _layers(work),
        "statistics": _statistics(work),
        "sweep": swept.sweep if swept else None,
        "search": _search(work),
        "score_name": work.workload.score_name,
        "higher_is_better": higher,
        "budgets": budgets[choice.candidate],
        "conditions": {
            "target": work.target.name,
            "test_samples": scored["samples"],
            **(first.conditions if first else conditions()),
            "made_by": dict(made_by()),
        },
        "protocol": dataclasses.asdict(first.protocol) if first else {},
        "stages": [
            {"name": f.name, "seconds": f.seconds, "cached": f.cached, "settings": dict(f.settings)}
            for f in run.finished
        ],
    }


def _budgets(
    recipe: Recipe,
    work: Work,
    original: Row,
    row: Row,
    measured: Mapping[str, Measurement],
    energy: Mapping[str, Any],
) -> list[Budget]:
    """The checks of one network; the bytes to send, if there is a budget for them, go into its row."""
    files = work.variant(row["name"]).files
    if recipe.budgets.ota_bytes is not None:
        row["ota_bytes"] = sent_bytes(work.variant(row["name"]).path("onnx")) if "onnx" in files else None
    # An engine that a board scored is what is shipped.
    before, final = ({**one, "score": one.get("engine_score", one["score"])} for one in (original, row))
    if unproven(*measured.values()):  # simulated or emulated figures neither keep nor break a budget
        final = {**final, "latency_s": None, "speedup": None, "memory_bytes": None}
    if recipe.budgets.max_gpu_fallbacks is not None and "onnx" in files:
        final["gpu_fallbacks"] = gpu_fallbacks(work.variant(row["name"]).path("onnx"), work.target)
    final["energy_j"] = energy.get(str(row["name"]), {}).get("high_j")
    checks = check_budgets(recipe.budgets, before, final, work.workload.higher_is_better)
    return [cast(Budget, dataclasses.asdict(check)) for check in checks]


def _energy(work: Work) -> dict[str, Any]:
    """By network: a sentence, and the upper end of the interval; empty where none was measured."""
    return read_json(work.artifacts["energy"].checked()) if "energy" in work.artifacts else {}


def exit_code(report: Report) -> int:
    """0: proven faster, within all budgets. 1: slower, or a budget broken. 3: cannot tell."""
    checks = [budget["met"] for budget in report.get("budgets", [])]
    verdict = outcome_code(report["verdict"]["outcome"], equal=3)
    return 1 if False in checks else 3 if verdict == 0 and None in checks else verdict


def _row(
    variant: Variant, facts: Mapping[str, Any], measured: Mapping[str, Measurement], memory: Mapping[str, Any]
) -> Row:
    figures, first = measured.get(variant.name), measured.get("original")
    row: Row = {
        "name": variant.name,
        "score": facts["score"],
        "parameters": facts["parameters"],
        "macs": facts.get("macs"),
        "file_bytes": facts.get("file_bytes"),
        "latency_s": _latency(figures) if figures else None,
        "memory_bytes": memory[variant.name]["resident_bytes"] if variant.name in memory else None,
        "speedup": speedup(first, figures) if first and figures and figures is not first else None,
    }
    if "engine_score" in facts:
        row["engine_score"] = facts["engine_score"]
    if "left_out" in facts:
        row["left_out"] = facts["left_out"]
    return row


def _latency(figures: Measurement) -> Latency:
    middle, tail = figures.latency_s(50), tail_of(figures, 99)
    return {
        "p50": middle.value,
        "p95": figures.latency_s(95).value,
        "p99": figures.latency_s(99).value,
        "p50_low": middle.low,
        "p50_high": middle.high,
        "n": int(figures.wall_ns.size),
        "p99_bound": tail.bound_s if math.isfinite(tail.bound_s) else None,
    }


def _judged(baseline: str, candidate: str, measured: Mapping[str, Measurement]) -> Judgement | None:
    if baseline == candidate or not {baseline, candidate} <= set(measured):
        return None
    return judge(measured[baseline], measured[candidate])


def _verdict(candidate: str, measured: Mapping[str, Measurement]) -> Verdict:
    found = _judged("original", candidate, measured)
    verdict: Verdict = {
        "outcome": "cannot_tell",
        "ratio": None,
        "low": None,
        "high": None,
        "confidence": 0.95,
        "sentence": "",
        "candidate": candidate,
    }
    if found:
        verdict["outcome"] = cast(Outcome, found.outcome)
        verdict["ratio"], verdict["confidence"] = found.ratio, found.confidence
        verdict["low"], verdict["high"] = bounds(found)
        verdict["events"] = found.events
        visible = found.smallest_visible
        verdict["smallest_visible"] = visible if math.isfinite(visible) else None
        verdict["reason"] = found.reason
        verdict["by"] = measurement.timed_by({name: measured[name] for name in ("original", candidate)})
    verdict["sentence"] = verdict_sentence(verdict, candidate)
    return verdict


def _sparse(work: Work, rows: Sequence[Row]) -> list[str]:
    """Sentences on the gain of single zeros, beside that of smaller layers."""
    if "sparse" not in work.artifacts:
        return []
    masked = {v.name for v in work.variants if "masks" in v.files}
    row = next(row for row in reversed(rows) if row["name"] in masked & {"sparse", "tuned"})
    smaller = [other for other in rows[1:] if other["name"] not in masked and other["name"] != "int8"]
    facts = read_json(work.artifacts["sparse"].checked())
    return sparse_sentences(facts, row, smaller[-1:], work.target, label=label(row["name"]))


def int8_sentences(measured: Mapping[str, Measurement]) -> list[str]:
    """A sentence on whether INT8 is faster than the same network in float, for the choice of what to ship."""
    base = next((name for name in ("tuned", "pruned") if _judged(name, "int8", measured)), None)
    found = _judged(base, "int8", measured) if base else None
    if base is None or found is None:
        return []
    rest = measurement.precision_words(measured[base]) if "engine" in measured[base].conditions else "FP32"
    advice = " INT8 saves bytes here, not time." if found.outcome in ("equal", "slower") else ""
    return [f"INT8 against the same network in {rest}: {found.sentence()}.{advice}"]


def time_sentences(candidate: str, measured: Mapping[str, Measurement]) -> list[str]:
    """Sentences on the times behind the verdict, above all on what disturbed them."""
    if (found := _judged("original", candidate, measured)) is None:
        return []
    words = [f"{capital(remark)}." for remark in found.remarks]
    if measured["original"].marks or measured[candidate].marks:
        words.append(
            "Each network's own times, p99 most of all, hold for that machine at that moment; the speed-up "
            "is from interleaved calls."
        )
    return words


def _layers(work: Work) -> list[Layer]:
    if "layers" not in work.artifacts:
        return []
    held = read_json(work.artifacts["layers"].checked())
    layers: dict[str, Layer] = {}
    for network, judged in held["networks"].items():
        for one in judged:
            times = {held["first"]: one["baseline_s"]}
            fresh: Layer = {"name": one["name"], "kind": one["kind"], "latency_s": times, "judged": {}}
            layer = layers.setdefault(one["name"], fresh)
            layer["latency_s"][network] = one["candidate_s"]
            verdict = {key: one[key] for key in LayerVerdict.__annotations__}
            verdict["low"] = one["low"] if one["high"] is not None else None
            layer.setdefault("judged", {})[network] = cast(LayerVerdict, verdict)
    return list(layers.values())


def _search(work: Work) -> Search | None:
    held = work.artifacts.get("search")
    return cast(Search, read_json(held.checked())) if held else None


def _widths(work: Work) -> list[Width]:
    if (plan := work.plan(work.latest())) is None:
        return []
    return [
        {"group": name, "kind": width.kind, "before": width.before, "after": width.after}
        for name, width in plan.widths.items()
    ]


def _statistics(work: Work) -> dict[str, UnitLists] | None:
    if (plan := work.plan(work.latest())) is None or "statistics" not in work.artifacts:
        return None
    statistics = ActivationStatistics.load(work.artifacts["statistics"].checked())
    lists: dict[str, UnitLists] = {}
    for group in statistics.names:
        units = statistics.of(group)
        gone = set(plan.removed.get(group, ()))
        lists[group] = {
            "mean": units.mean.tolist(),
            "std": units.std.tolist(),
            "zero_share": units.zero_share.tolist(),
            "removed": [index in gone for index in range(len(units.mean))],
        }
    return lists
