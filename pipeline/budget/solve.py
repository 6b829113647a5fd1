"""The solver: the widths with the least sum of one kind (damage) within limits of others (time, bytes).

An integer program: one binary variable for each width of each group, and one for each combination of widths
of a term, which is 1 exactly where the term's groups have these widths. HiGHS solves it to a stated gap.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from ...export.onnx_graph.resize import Widths
from ...targets.errors import ModelError, RecipeError

Levels = Mapping[str, tuple[int, ...]]
"""The widths that each group may have."""


@dataclass(frozen=True)
class Term:
    """What some groups add to a sum together, by their widths."""

    groups: tuple[str, ...]
    values: Mapping[tuple[int, ...], float]


@dataclass(frozen=True)
class Sum:
    """A property of a network that adds up, such as seconds or bytes."""

    name: str
    terms: Sequence[Term]
    constant: float = 0.0

    def at(self, widths: Widths) -> float:
        """The sum at these widths."""
        return self.constant + sum(
            one.values[tuple(widths[name] for name in one.groups)] for one in self.terms
        )


class OutOfReachError(RecipeError):
    """No widths are within the limits."""


class OutOfTimeError(ModelError):
    """The solver found nothing in its time."""


@dataclass(frozen=True)
class Solved:
    """Widths, their sum, and how far it may be above the least possible, as a share."""

    widths: Mapping[str, int]
    value: float
    gap: float


def solve(
    levels: Levels,
    objective: Sum,
    limits: Sequence[tuple[Sum, float]] = (),
    *,
    unlike: Sequence[Widths] = (),
    apart: int = 1,
    gap: float = 1e-3,
    time_limit_s: float = 60.0,
) -> Solved:
    """The widths of the least sum.

    Args:
        limits: sums, and what each may be at most.
        unlike: earlier solutions, from each of which at least `apart` of its groups differ.
        gap: how far above the least the sum may be, as a share.

    Raises:
        OutOfReachError: no widths are within the limits.
        OutOfTimeError: none were found in time.
    """
    at = {
        (group, width): place
        for place, (group, width) in enumerate(
            (group, width) for group, own in levels.items() for width in own
        )
    }
    sums = [objective, *(one for one, _ in limits)]
    joint: dict[tuple[tuple[str, ...], tuple[int, ...]], int] = {}
    for one in sums:
        for term in one.terms:
            for widths in term.values if len(term.groups) > 1 else ():
                joint.setdefault((term.groups, widths), len(at) + len(joint))

    def row(one: Sum) -> dict[int, float]:
        found: dict[int, float] = {}
        for term in one.terms:
            for widths, value in term.values.items() if term.groups else ():
                place = at[term.groups[0], widths[0]] if len(widths) == 1 else joint[term.groups, widths]
                found[place] = found.get(place, 0.0) + value
        return found

    rows: list[dict[int, float]] = []
    bounds: list[tuple[float, float]] = []
    for group, own in levels.items():  # each group has one width
        rows.append({at[group, width]: 1.0 for width in own})
        bounds.append((1.0, 1.0))
    marginals: dict[tuple[tuple[str, ...], str, int], dict[int, float]] = {}
    for (groups, widths), place in joint.items():  # a combination is chosen exactly where its widths are
        for group, width in zip(groups, widths, strict=True):
            marginals.setdefault((groups, group, width), {at[group, width]: -1.0})[place] = 1.0
    rows += marginals.values()
    bounds += [(0.0, 0.0)] * len(marginals)
    for one, most in limits:
        own_row = row(one)
        scale = max(map(abs, own_row.values()), default=1.0) or 1.0  # the tolerance is absolute
        rows.append({place: value / scale for place, value in own_row.items()})
        bounds.append((-np.inf, (most - _fixed(one)) / scale))
    for earlier in unlike:
        rows.append({at[group, width]: 1.0 for group, width in earlier.items()})
        bounds.append((-np.inf, len(earlier) - apart))
    count = len(at) + len(joint)
    wanted = np.zeros(count)
    for place, value in row(objective).items():
        wanted[place] = value
    entries = [(line, place, value) for line, each in enumerate(rows) for place, value in each.items()]
    lines, places, values = zip(*entries, strict=True)
    matrix = coo_array((values, (lines, places)), shape=(len(rows), count)).tocsr()
    wanted *= 1e5 / max(abs(wanted).max(), 1e-300)  # so that HiGHS's absolute gap of 1e-6 ends no search
    with _silent():
        found = milp(
            wanted,
            integrality=np.r_[np.ones(len(at)), np.zeros(len(joint))],
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, *np.array(bounds).T),
            options={"mip_rel_gap": gap, "time_limit": time_limit_s},
        )
    if found.x is None:
        asked = ", ".join(f"{one.name} of at most {most:.4g}" for one, most in limits) or "these groups"
        if found.status == 1:
            raise OutOfTimeError(
                f"The solver found no widths with {asked} in {time_limit_s:g} s, of {count:,} choices.",
                "Give it more time (in a recipe: solver_s), or let fewer groups be pruned.",
            )
        raise OutOfReachError(f"No widths exist with {asked}.", "Allow more.")
    chosen = {group: width for (group, width), place in at.items() if found.x[place] > 0.5}
    return Solved(chosen, objective.at(chosen), float(found.mip_gap or 0.0))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """HiGHS writes some lines for its own developers, past Python, to the process's output."""
    held, nowhere = list[tuple[int, int]](), os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with contextlib.suppress(OSError):  # it was closed
            held.append((stream, os.dup(stream)))
            os.dup2(nowhere, stream)
    try:
        yield
    finally:
        os.close(nowhere)
        for stream, own in held:
            os.dup2(own, stream)
            os.close(own)


def _fixed(one: Sum) -> float:
    """What no width changes."""
    return one.constant + sum(term.values[()] for term in one.terms if not term.groups)
