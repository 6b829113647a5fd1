"""The report's sentences: the verdict, its uncertainty, the budgets, the controls, and what zeros gain.

A sentence claims only what its figures support. A control whose score is within the test set's sampling error
of the network it controls "did as well"; if the sampling error is not known, nothing is claimed about the
difference.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...targets.board_file import read_toml
from ...targets.errors import ArtifactError
from ...targets.target import Target
from .schema import Budget, Control, Report, Row, Verdict
from .units import (
    PLUS_MINUS,
    ScoreScale,
    by_name,
    capital,
    count,
    duration,
    interval,
    percent,
    ratio,
    spoken,
)

SPARSE_SINCE = 8.0  # the lowest compute capability whose tensor cores support 2:4: Ampere
_Z = 1.96  # two-sided 95 % of a normal distribution
_T = 2.093  # the same of Student's, for 20 parts
_ACCURACIES = ("accuracy", "top-1", "top1", "top-5", "top5")

OUTCOMES = {"faster": "Faster", "slower": "Slower", "equal": "Equal", "cannot_tell": "Cannot tell"}

_NETWORKS = read_toml(Path(__file__).with_name("networks.toml"), ArtifactError)


def label(name: str) -> str:
    """A row's name as a heading; the user's own names are unchanged."""
    return str(_NETWORKS["labels"].get(name, name))


def scale_of(report: Report) -> ScoreScale:
    scores = [row["score"] for row in [*report["rows"], *report.get("controls", [])]]
    return ScoreScale.of(report["score_name"], higher_is_better=report["higher_is_better"], scores=scores)


def judged_row(report: Report) -> Row:
    """The row that the verdict is about: the one it names, else the one with its ratio, else the last."""
    verdict = report["verdict"]
    for row in report["rows"]:
        if row["name"] == verdict.get("candidate"):
            return row
    for row in report["rows"]:
        if row["speedup"] and row["speedup"]["ratio"] == verdict["ratio"]:
            return row
    return report["rows"][-1]


def headline(report: Report) -> str:
    """The first line: which network to ship and why, and its speed."""
    ship = report.get("ship", {"network": None, "sentence": ""})
    return f"{ship['sentence']} {report['verdict']['sentence']}".strip()


def verdict_sentence(verdict: Verdict, candidate: str) -> str:
    """One sentence for an outcome; `candidate` is the row's name.

    Slower is stated as the time it takes, because "0.8 times as fast" is easily misread.
    """
    network = {"int8": "INT8", "qat": "INT8 (QAT)", "tuned": "pruned and tuned"}.get(candidate, candidate)
    if (value := verdict["ratio"]) is None:
        return f"Nothing was measured, so the speed of the {network} network is not known."
    if verdict["outcome"] == "faster":
        return f"The {network} network is {ratio(value)} as fast as the original."
    if verdict["outcome"] == "slower":
        return f"The {network} network is slower: it takes {ratio(1 / value)} as long as the original."
    if verdict["outcome"] == "equal":
        return f"The {network} network is as fast as the original, no faster and no slower."
    return f"This run cannot tell whether the {network} network is faster than the original."


def how_sure(verdict: Verdict) -> str:
    if (value := verdict["ratio"]) is None:
        return "No speed-up was measured."
    text = f"Speed-up {ratio(value)}, {interval(verdict['low'], verdict['high'])}"
    if verdict["low"] is not None and verdict["high"] is not None:
        text += f" with {verdict['confidence'] * 100:.4g} % confidence"
    events = verdict.get("events")
    text += f", from {events:,} independent repetitions." if events else "."
    text += f" {capital(verdict['by'])}." if "by" in verdict else ""
    if verdict["outcome"] != "cannot_tell":
        return text
    if reason := (verdict.get("reason") or "").rstrip("."):
        text += f" {capital(reason)}."
    visible = verdict.get("smallest_visible")
    return f"{text} This run could detect a speed-up of {ratio(visible)} or more." if visible else text


def budget_sentence(budget: Budget, scale: ScoreScale) -> str:
    names = {
        "score_drop": f"drop of {scale.name}",
        "speedup": "speed-up (lower end of its interval)",
        "latency_s": "latency p50",
        "ota_bytes": "sent over the air",
    }
    name = names.get(budget["name"], spoken(budget["name"]))
    bound = "at least" if budget["name"] in ("parameters_removed", "speedup") else "at most"

    def written(value: float) -> str:
        if budget["name"] == "score_drop":
            return scale.change(value, sign=value < 0)
        if budget["name"] == "speedup":
            return ratio(value)
        return percent(value) if budget["name"] == "parameters_removed" else by_name(budget["name"], value)

    limit = f"{bound} {written(budget['limit'])}"
    if budget["met"] is None or budget["value"] is None:
        return f"{name}: not measured, {limit}"
    return f"{name}: {written(budget['value'])}, {limit}: {'met' if budget['met'] else 'broken'}"


def budgets_sentence(budgets: Sequence[Budget]) -> str:
    broken = sum(budget["met"] is False for budget in budgets)
    unknown = sum(budget["met"] is None or budget["value"] is None for budget in budgets)
    if not broken and not unknown:
        return f"All {len(budgets)} budgets are met." if len(budgets) > 1 else "The budget is met."
    parts = [f"{broken} of {len(budgets)} budgets broken"] if broken else []
    parts += [f"{unknown} not measured" if broken else f"{unknown} of {len(budgets)} budgets not measured"]
    return f"{', '.join(parts if unknown else parts[:1])}."


def protocol_sentences(protocol: Mapping[str, Any]) -> list[str]:
    """Sentences on how the times were measured, from the protocol's figures alone.

    `protocol["words"]` (a sentence, or a list of them) goes first.
    """
    own = protocol.get("words", [])
    sentences = [own] if isinstance(own, str) else [str(sentence) for sentence in own]
    events, rounds = protocol.get("events"), protocol.get("min_rounds")
    if events and rounds:
        sentences.append(
            f"All models were loaded again {events} times, together, in one process. In each of these events "
            f"their calls were interleaved in random order, for at least {rounds} rounds. An event counts as "
            "one observation, because calls within one are not independent."
        )
    settle, block = protocol.get("settle_s"), protocol.get("block_s")
    if settle and block:
        sentences.append(
            f"Each block of calls ran {duration(settle)} without timing, to warm the caches, and then "
            f"{duration(block)} with timing."
        )
    threads, batch, runtime = (protocol.get(key) for key in ("threads", "batch", "runtime"))
    if threads and batch and runtime:
        with_threads = "1 thread" if threads == 1 else f"{threads} threads"
        sentences.append(f"The runtime was {runtime} with {with_threads}, at batch {batch}.")
    return sentences


def sampling_error(score: float, n: int) -> float:
    """The standard error of an accuracy (a share of n independent samples that were right).

    One right and one wrong sample are added (Laplace), so that a score of 0 or 1 has an error too.
    """
    share = (score * n + 1) / (n + 2)
    return math.sqrt(share * (1 - share) / n)


def control_sentences(
    rows: Sequence[Row], controls: Sequence[Control], scale: ScoreScale, *, n: int | None
) -> list[str]:
    """One or two sentences for each control: did it do worse, as well, or better?

    A control is compared with the tuned network (else the pruned one, the ticket, or the last row). The
    difference counts when it exceeds 1.96 times the standard error of a difference of two scores: the
    binomial one, when the score is an accuracy over `n` test samples. Both networks see the same samples, so
    the true error is smaller than the one used here: the rule favours "did as well", against the method. For
    any other score it is the jackknife's, of the differences without each part of the samples. Both cover
    only the test set's sampling error, not the variation between training runs.
    """
    names = {row["name"]: row for row in rows}
    against = names.get("tuned") or names.get("pruned") or names.get("ticket") or rows[-1]
    return [_one_control(control, against, scale, n) for control in controls]


def _one_control(control: Control, against: Row, scale: ScoreScale, n: int | None) -> str:
    known = _NETWORKS["controls"].get(control["name"])
    name = known["is"] if known else f"The control {control['name']}"
    moral = f"This run gives no evidence that {known['claim']}." if known else ""
    network = "pruned and tuned" if against["name"] == "tuned" else label(against["name"]).lower()
    other = f"the {network} network"
    mine, theirs = control["score"], against["score"]
    if mine is None or theirs is None:
        return f"{name}: not scored, so not compared."
    figures = f"{scale.name} {scale.text(mine)} against {scale.text(theirs)}"
    margin = _margin(control, against, scale, n)
    if margin is None or not n:
        return (
            f"{name}: {figures}. The sampling error of this score is not known, so whether the difference of "
            f"{scale.change(mine - theirs, sign=False)} is more than chance is not judged."
        )
    loss = scale.loss(mine - theirs)
    bound = f"{PLUS_MINUS}{scale.change(margin, sign=False)} that chance allows with {n:,} test samples"
    if loss > margin:
        return f"{name} did worse than {other}: {figures}, beyond the {bound}."
    if loss < -margin:
        return f"{name} did better than {other}: {figures}, beyond the {bound}. {moral}".strip()
    return f"{name} did as well as {other}: {figures}, within the {bound}. {moral}".strip()


def _margin(control: Control, against: Row, scale: ScoreScale, n: int | None) -> float | None:
    """The difference of two scores that chance allows, with 95 %; None where it is not known."""
    if n and scale.share and any(word in scale.name.lower() for word in _ACCURACIES):
        return _Z * math.hypot(*(sampling_error(row["score"] or 0.0, n) for row in (control, against)))
    pairs = [*zip(control.get("left_out", ()), against.get("left_out", ()), strict=False)]
    if len(pairs) < 2:
        return None
    differences = [mine - theirs for mine, theirs in pairs]
    spread = statistics.pvariance(differences) * (len(pairs) - 1)
    return _T * math.sqrt(spread)


def sparse_sentences(
    facts: Mapping[str, Any], row: Row, others: Sequence[Row], target: Target, *, label: str
) -> list[str]:
    """Sentences on a network with dropped weights.

    Args:
        facts: the artifact of the stage "sparsify".
        row: the network's row; `label` is its name in the sentences.
        others: rows of networks that were made smaller instead, for comparison.
    """
    words = [
        f"{label}: {count(facts['left'])} of {count(facts['parameters'])} parameters are left "
        f"({percent(facts['left'] / facts['parameters'])}), the others are zero but are still in the file: "
        "deadweight pack leaves them out.",
        _speed(facts, row, target, label),
    ]
    for other in others:
        judged = other["speedup"]
        if judged and other["parameters"]:
            words.append(
                f"The {other['name']} network, whose {count(other['parameters'])} parameters are in "
                f"smaller dense layers: speed-up {ratio(judged['ratio'])}, "
                f"{interval(judged['low'], judged['high'])}."
            )
    return [*words, _kernels(target)] if facts["structured"] else words


def _speed(facts: Mapping[str, Any], row: Row, target: Target, label: str) -> str:
    if (judged := row["speedup"]) is None:
        return f"{label}: its speed was not measured."
    text = f"{label}: speed-up {ratio(judged['ratio'])}, {interval(judged['low'], judged['high'])}."
    if judged["outcome"] == "faster" and facts["structured"] and target.runtime.sparse_kernels:
        return f"{text} The kernels for 2:4 are faster here."
    if judged["outcome"] == "faster":
        return f"{text} No kernel of this runtime is known to skip zeros: look for another cause."
    return (
        f"{text} Zeros do not make dense kernels faster: they multiply by zero as by any other number. To "
        "gain time, remove whole neurons (the stage prune)."
    )


def _kernels(target: Target) -> str:
    text = (
        "2:4 can be faster on the tensor cores of Ampere GPUs and later ones, in INT8 and FP16. It must be "
        "enabled: deadweight build MODEL.onnx --sparse sets TensorRT's flag SPARSE_WEIGHTS. The builder "
        "still uses a layer's dense kernel if that is faster."
    )
    if not target.runtime.sparse_kernels:
        return f"{text} {target.title} has no kernels for it."
    capability = target.certain("compute_capability")
    if capability is not None and float(str(capability)) < SPARSE_SINCE:
        return f"{text} {target.title} has none: its GPU is of compute capability {capability}."
    return text
