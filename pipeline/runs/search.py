"""Settings that Optuna proposes, in place of all combinations: TPE with two objectives (Ozaki et al. 2022).

The objectives are the validation score and what it is traded for, parameters or measured time. A setting is
dropped before its training when three others are both better and smaller there already. Settings are proposed
in batches of as many as run at a time, so that a search that is resumed proposes the same ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...targets.errors import RecipeError
from ..recipe import SweepSettings
from ..report.schema import SweepRow
from ..report.units import settings_text

DROPPED_BY = 3
"""So many settings are better in both objectives before tuning, and a setting is not tuned."""

Over = Mapping[str, Mapping[str, Any]]
Tried = Callable[[Over], Sequence[SweepRow]]
"""Tries settings, by name, and returns the rows of those that were not refused."""
Cut = Callable[[Over], Mapping[str, tuple[float, float]]]
"""Cuts settings without tuning, and returns score and parameters of those that were not refused."""


@dataclass(frozen=True)
class Found:
    """What a search tried: its rows, and what it took in words."""

    rows: list[SweepRow]
    words: str


def search(
    settings: SweepSettings, tried: Tried, cut: Cut | None, *, seed: int, higher: bool, at_once: int
) -> Found:
    """Tries `settings.trials` settings that Optuna proposes.

    Args:
        cut: None where nothing is trained after the cut: nothing is saved by dropping a setting then.

    Raises:
        RecipeError: Optuna is not installed, or a range has no value.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        cure = 'Install the extra [scale], in a checkout: pip install ".[scale]".'
        raise RecipeError(f'search = "{settings.search}" needs {error.name}.', cure) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spaces = {name: _space(name, values, optuna.distributions) for name, values in settings.over.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, n_startup_trials=max(5, settings.trials // 4)
        )
    study = optuna.create_study(
        directions=["maximize" if higher else "minimize", "minimize"], sampler=sampler
    )
    rows: dict[str, SweepRow] = {}
    cuts: dict[str, tuple[float, float]] = {}
    looks = dropped = 0
    while len(study.trials) < settings.trials:
        count = min(at_once, settings.trials - len(study.trials))
        asked = [study.ask(spaces) for _ in range(count)]
        named = {settings_text(one.params): one.params for one in asked}
        new = {name: each for name, each in named.items() if name not in rows and name not in cuts}
        if cut is not None and new:
            found = cut(new)
            cuts |= found
            looks += len(found)
            new = {name: new[name] for name in found if not _dominated(name, cuts, higher)}
            dropped += len(found) - len(new)
        for row in tried(new) if new else ():
            rows[settings_text(row["settings"])] = row
            looks += 1
        for one in asked:
            known = rows.get(settings_text(one.params))
            if known is None or known["score"] is None:
                study.tell(one, state=optuna.trial.TrialState.PRUNED)
            else:
                study.tell(one, [known["score"], _cost(known, settings.against)])
    words = (
        f"Optuna (TPE) proposed {len(study.trials)} settings, {len(rows)} of them were tuned and scored"
        f"{f', {dropped} dropped after the cut' if dropped else ''}. The choice took {looks} looks at the "
        "validation split, beside those of each training: its score there is optimistic."
    )
    return Found([*rows.values()], words)


def _dominated(name: str, cuts: Mapping[str, tuple[float, float]], higher: bool) -> bool:
    """Whether several settings have a better score and fewer parameters before tuning."""
    (score, size), sign = cuts[name], 1 if higher else -1
    return sum(sign * (one[0] - score) > 0 and one[1] < size for one in cuts.values()) >= DROPPED_BY


def _cost(row: SweepRow, against: str) -> float:
    """What the score is traded for; the time is relative to the original's, timed beside it.

    Raises:
        RecipeError: nothing was timed.
    """
    if against == "parameters":
        return float(row["parameters"])
    if row["speedup"] is None:
        raise RecipeError(
            'The search is against = "latency", and nothing was timed: this machine is not the target.',
            'Name a board of the cluster (board in [sweep]), or set against = "parameters".',
        )
    return 1 / row["speedup"]["ratio"]


def _space(name: str, values: Any, distributions: Any) -> Any:
    """A list is a choice; a table {low, high, log} a range, of whole numbers if both ends are.

    Raises:
        RecipeError: it is neither.
    """
    if not isinstance(values, Mapping):
        return distributions.CategoricalDistribution(list(values))
    low, high, log = (values.get(key) for key in ("low", "high", "log"))
    whole = isinstance(low, int) and isinstance(high, int)
    kind = distributions.IntDistribution if whole else distributions.FloatDistribution
    try:
        return kind(low, high, log=bool(log))
    except (TypeError, ValueError) as error:
        cure = "Write { low = 0.1, high = 0.9 }, with log = true for a scale of ratios."
        raise RecipeError(f'The range of "{name}" has no values: {error}.', cure) from error
