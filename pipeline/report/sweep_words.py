"""The report's sentences on a sweep: the chosen setting, the best criterion, the controls.

They are about this network and these data, and no surer than the seeds allow: with one seed they only state
what was seen; with several, a difference counts if the interval of the paired differences excludes zero.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .schema import Sweep, SweepControl, SweepRow
from .units import ScoreScale, percent, settings_text

_CONTROLS = {"random": "random neurons at the same widths", "scratch": "the same network from scratch"}


def sweep_sentences(sweep: Sweep, scale: ScoreScale, *, score_drop: float | None = None) -> list[str]:
    """Sentences about the chosen setting, its controls, and the criteria that were tried.

    Args:
        score_drop: how much worse than the original the chosen network was allowed to be.
    """
    rows, words = sweep["rows"], []
    for row in rows:
        if row["chosen"] and row["score_change"] is not None:
            words.append(_chosen(row, scale, score_drop))
            words += [_control(name, one, scale) for name, one in row.get("controls", {}).items()]
    for setting in sweep["settings"]:
        if setting.rpartition(".")[2] == "criterion":
            words += _criteria(rows, setting, scale)
    return words


def _chosen(row: SweepRow, scale: ScoreScale, score_drop: float | None) -> str:
    within = "" if score_drop is None else scale.change(score_drop, sign=False)
    rule = f", the smallest that loses at most {within}" if within else ""
    seeds = f", mean of {row['seeds']} seeds" if "seeds" in row else ", one seed"
    return (
        f"Chosen{rule}: {settings_text(row['settings'])}, which changes the {scale.name} by "
        f"{scale.change(row['score_change'] or 0.0)}{seeds}, and keeps "
        f"{percent(1 - row['parameters_removed'])} of the parameters."
    )


def _control(name: str, control: SweepControl, scale: ScoreScale) -> str:
    against = f"Against {_CONTROLS.get(name, f'the control {name}')}: {scale.change(control['difference'])}"
    if control["low"] is None or control["high"] is None:
        return f"{against} with one seed, which cannot distinguish the method from chance."
    between = f"{against} ({scale.change(control['low'])} to {scale.change(control['high'])}, 95 %)"
    if control["low"] <= 0 <= control["high"]:
        return f"{between}: not more than chance over the seeds."
    better = (control["difference"] > 0) == scale.higher_is_better
    return f"{between}: {'the chosen network is better' if better else 'the control is better'}."


def _criteria(rows: Sequence[SweepRow], setting: str, scale: ScoreScale) -> list[str]:
    """Sentences on how often each criterion was best, all else equal, and by how much over the second."""
    alike: dict[str, list[SweepRow]] = {}
    for row in rows:
        rest = {name: value for name, value in row["settings"].items() if name != setting}
        if row["score"] is not None:
            alike.setdefault(settings_text(rest) if rest else "", []).append(row)
    if not (contests := {key: group for key, group in alike.items() if len(group) > 1}):
        return []
    firsts = Counter[str]()
    leads = []
    for group in contests.values():
        ordered = sorted(group, key=lambda row: row["score"] or 0.0, reverse=scale.higher_is_better)
        firsts[str(ordered[0]["settings"][setting])] += 1
        lead = abs((ordered[0]["score"] or 0.0) - (ordered[1]["score"] or 0.0))
        spread = max(one.get("score_spread") or 0.0 for one in ordered[:2])
        leads.append((lead, spread, "score_spread" in ordered[0]))
    best, count = firsts.most_common(1)[0]
    sure = sum(lead > 2 * spread for lead, spread, several in leads if several)
    words = f"Of the criteria {best} came first in {count} of {len(contests)} comparisons"
    if not any(several for _, _, several in leads):
        return [f"{words}; with one seed this may be chance."]
    return [f"{words}; in {sure} of them it led the second by more than twice the spread of the seeds."]
