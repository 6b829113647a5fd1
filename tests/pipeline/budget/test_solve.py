from __future__ import annotations

import itertools
import random

import pytest

from deadweight.pipeline.budget.solve import OutOfReachError, OutOfTimeError, Sum, Term, solve


def planted(seed: int) -> tuple[dict[str, tuple[int, ...]], Sum, Sum]:
    """Levels of up to five groups in a chain, random damage, and times with steps of 8 and noise."""
    rng = random.Random(seed)
    names = [f"g{place}" for place in range(rng.randint(2, 5))]
    levels = {name: tuple(sorted(rng.sample(range(1, 65), rng.randint(2, 6)))) for name in names}
    damage = [
        Term((name,), {(width,): 0.0 if width == own[-1] else 3 * rng.random() for width in own})
        for name, own in levels.items()
    ]
    terms = [
        Term(
            pair, {at: 1e-6 * (-(-at[1] // 8) * at[0] + 50 * rng.random()) for at in itertools.product(*own)}
        )
        for pair, own in ((pair, [levels[name] for name in pair]) for pair in itertools.pairwise(names))
    ]
    if len(names) > 2:
        three = tuple(names[:3])
        combined = itertools.product(*(levels[name] for name in three))
        terms.append(Term(three, {at: 3e-4 * rng.random() for at in combined}))
    return levels, Sum("damage", damage), Sum("seconds", [*terms, Term((), {(): 2e-6})], 1e-6)


@pytest.mark.parametrize("seed", range(25))
def test_a_solution_is_within_the_gap_of_the_best_of_all_combinations_and_keeps_the_limit(seed: int) -> None:
    levels, damage, seconds = planted(seed)
    every = [dict(zip(levels, at, strict=True)) for at in itertools.product(*levels.values())]
    limit = random.Random(seed).uniform(0.2, 0.9) * seconds.at(every[-1])
    within = [one for one in every if seconds.at(one) <= limit]
    if not within:
        with pytest.raises(OutOfReachError, match="No widths exist with seconds of at most"):
            solve(levels, damage, [(seconds, limit)])
        return
    found = solve(levels, damage, [(seconds, limit)])
    assert seconds.at(found.widths) <= limit * (1 + 1e-9)
    assert found.value == damage.at(found.widths) <= 1.001 * min(map(damage.at, within)) + 1e-9
    fastest = solve(levels, seconds)
    assert fastest.value == pytest.approx(min(map(seconds.at, every)), rel=1e-3)


@pytest.mark.parametrize("seed", range(12))
def test_a_damage_near_zero_beside_a_large_one_is_no_less_exact(seed: int) -> None:
    rng, names = random.Random(seed), ["a", "b", "c", "d"]
    levels = dict.fromkeys(names, (1, 2, 3, 4))
    rises = {name: [*sorted((rng.random() ** 12 for _ in range(3)), reverse=True), 0.0] for name in names}
    damage = Sum("damage", [Term((n,), {(at + 1,): rises[n][at] for at in range(4)}) for n in names])
    seconds = Sum(
        "seconds", [Term((name,), {(at,): at * rng.random() for at in range(1, 5)}) for name in names]
    )
    every = [dict(zip(levels, at, strict=True)) for at in itertools.product(*levels.values())]
    limit = sorted(map(seconds.at, every))[len(every) // 4]
    least = min(damage.at(one) for one in every if seconds.at(one) <= limit)
    assert solve(levels, damage, [(seconds, limit)]).value <= 1.001 * least


def test_the_next_plan_differs_from_the_earlier_ones_in_as_many_groups_as_asked() -> None:
    levels, damage, seconds = planted(3)
    limit = 0.7 * seconds.at({name: own[-1] for name, own in levels.items()})
    first = solve(levels, damage, [(seconds, limit)])
    other = solve(levels, damage, [(seconds, limit)], unlike=[first.widths], apart=2)
    assert sum(first.widths[name] != other.widths[name] for name in levels) >= 2
    assert other.value >= first.value


def test_a_solver_that_runs_out_of_time_says_how_many_choices_there_were_and_which_setting_gives_more() -> (
    None
):
    levels = {f"g{place}": tuple(range(1, 9)) for place in range(40)}
    rng, pairs = random.Random(0), [*itertools.pairwise(levels)]
    damage = Sum("damage", [Term((n,), {(at,): rng.random() for at in own}) for n, own in levels.items()])
    times = [{at: rng.random() for at in itertools.product(range(1, 9), repeat=2)} for _ in pairs]
    seconds = Sum("seconds", [Term(pair, own) for pair, own in zip(pairs, times, strict=True)])
    with pytest.raises(
        OutOfTimeError, match=r"found no widths with seconds of at most 4 in .* choices"
    ) as caught:
        solve(levels, damage, [(seconds, 4.0)], time_limit_s=1e-6)
    assert "solver_s" in str(caught.value)


def test_two_limits_are_kept_at_once() -> None:
    levels, damage, seconds = planted(4)
    size = Sum("bytes", [Term((name,), {(at,): 100.0 * at for at in own}) for name, own in levels.items()])
    dense = {name: own[-1] for name, own in levels.items()}
    limits = [(seconds, 0.8 * seconds.at(dense)), (size, 0.5 * size.at(dense))]
    found = solve(levels, damage, limits)
    assert all(one.at(found.widths) <= most for one, most in limits)
