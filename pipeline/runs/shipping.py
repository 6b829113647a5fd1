"""Which network of a run to ship: the best score among the fastest of those that keep the budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...targets.timing.judge import judge, unproven
from ...targets.timing.measurement import Measurement
from ..report.schema import Budget, Row
from ..report.units import ScoreScale, ratio
from ..report.words import budget_sentence, label


@dataclass(frozen=True)
class Choice:
    """What to ship.

    Attributes:
        candidate: the row that the verdict is about; the last one where none is to be shipped.
        network: the row to ship; None if each breaks a budget.
        sentence: says so and why; "" where the last network was not measured, so that nothing was chosen.
    """

    candidate: str
    network: str | None
    sentence: str


def choose(
    rows: Sequence[Row],
    budgets: Mapping[str, Sequence[Budget]],
    measured: Mapping[str, Measurement],
    scale: ScoreScale,
) -> Choice:
    """Chooses among the measured networks of the chain.

    Of those that break no budget and leave fewest of them unknown, the fastest and what is not proven slower
    than it are left; the one with the best score is shipped, at equal scores the smaller file.

    Args:
        rows: the original first.
        budgets: the checks of each other row.
    """
    last = rows[-1]["name"]
    there = [row for row in rows[1:] if row["name"] in measured]
    if last not in {row["name"] for row in there} or unproven(*measured.values()):
        broken = any(one["met"] is False for one in budgets.get(last, ()))
        return Choice(last, None if broken else last, "")
    kept = [row for row in there if all(one["met"] is not False for one in budgets[row["name"]])]
    broken_words = [
        f"{label(row['name'])} breaks a budget ({'; '.join(broken_budgets(budgets[row['name']], scale))})"
        for row in there
        if row not in kept
    ]
    if not kept:
        return Choice(last, None, f"Ship none of these networks: {'; '.join(broken_words)}.")
    unknown = {row["name"]: sum(one["met"] is None for one in budgets[row["name"]]) for row in kept}
    known = [row for row in kept if unknown[row["name"]] == min(unknown.values())]
    fastest = min(known, key=lambda row: measured[row["name"]].latency_s(50).value)
    slower = {
        row["name"]: found.ratio
        for row in kept
        if row is not fastest
        and (found := judge(measured[row["name"]], measured[fastest["name"]])).outcome == "faster"
    }
    level = [row for row in known if row["name"] not in slower]
    chosen = max(level, key=lambda row: (_score(row, scale), -(row["file_bytes"] or 0), rows.index(row)))
    name, speedup = label(chosen["name"]), chosen["speedup"]
    slow = speedup is not None and speedup["outcome"] == "slower"
    said = [f"Ship none for its speed: {name} is slower than the original" if slow else f"Ship {name}"]
    said[0] += f": {_why(chosen, level=level, kept=kept, there=there)}"
    said += [f"{label(other)} takes {ratio(times)} as long" for other, times in slower.items()]
    return Choice(chosen["name"], chosen["name"], "; ".join([*said, *broken_words]) + ".")


def broken_budgets(budgets: Sequence[Budget], scale: ScoreScale) -> list[str]:
    """A sentence for each budget that is broken."""
    return [budget_sentence(one, scale) for one in budgets if one["met"] is False]


def _score(row: Row, scale: ScoreScale) -> float:
    score = row.get("engine_score", row["score"])
    return float("-inf") if score is None else -scale.loss(score)


def _why(chosen: Row, *, level: Sequence[Row], kept: Sequence[Row], there: Sequence[Row]) -> str:
    if len(there) == 1:
        return "it breaks no budget"
    if len(kept) == 1:
        return "it alone breaks no budget"
    if len(level) == 1:
        return f"it is the fastest of {len(kept)} that break no budget"
    others = " and ".join(label(row["name"]) for row in level if row is not chosen)
    return (
        f"none that breaks no budget is faster; {others} cannot be distinguished by time and scores no better"
    )
