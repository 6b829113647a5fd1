from __future__ import annotations

import itertools
import random
from typing import cast

from deadweight.pipeline.report.schema import Sweep, SweepRow
from deadweight.pipeline.report.tradeoff import pareto, tradeoff_figure
from deadweight.pipeline.report.units import ScoreScale

ACCURACY = ScoreScale("accuracy", True, share=True)
ERROR = ScoreScale("error", False, share=False)


def sweep(*points: tuple[float, float | None], chosen: int | None = None) -> Sweep:
    """A sweep of (share removed, change of score)."""
    rows = [
        {
            "settings": {"mean": at},
            "score": None if change is None else 0.9 + change,
            "raw_score": None,
            "score_change": change,
            "parameters": 1000,
            "parameters_removed": removed,
            "macs": None,
            "file_bytes": None,
            "speedup": None,
            "chosen": at == chosen,
            "split": "validation",
        }
        for at, (removed, change) in enumerate(points)
    ]
    return {"settings": ["mean"], "rows": [cast(SweepRow, row) for row in rows]}


def test_the_front_holds_exactly_the_points_that_no_other_beats() -> None:
    generator = random.Random(0)
    for _ in range(50):
        points = [(generator.randint(0, 9), generator.randint(0, 9)) for _ in range(12)]
        front = {points[at] for at in pareto(points)}
        dominated = {
            a for a, b in itertools.product(points, points) if b != a and b[0] <= a[0] and b[1] <= a[1]
        }
        assert front == set(points) - dominated


def test_the_front_and_the_chosen_setting_are_drawn() -> None:
    figure = tradeoff_figure(
        sweep((0.2, 0.0), (0.5, -0.001), (0.4, -0.004), (0.8, -0.01), chosen=1), ACCURACY
    )
    assert figure
    by_name = {trace["name"]: trace for trace in figure.traces}
    assert by_name["Pareto front"]["x"] == [20.0, 50.0, 80.0]
    assert by_name["Pareto front"]["y"] == [-1.0, -0.1, 0.0]
    assert by_name["dominated"]["x"] == [60.0]
    assert by_name["chosen"]["x"] == [50.0]
    assert "Chosen: mean 1" in figure.alt


def test_settings_that_ruin_the_network_do_not_squeeze_the_others() -> None:
    ruined = sweep((0.2, 0.0), (0.5, -0.001), (0.6, -0.004), (0.99, -0.7), chosen=1)
    figure = tradeoff_figure(ruined, ACCURACY)
    assert figure
    assert figure.layout["yaxis"]["range"][0] > -3
    (edge,) = [trace for trace in figure.traces if trace["name"] == "loses more than is shown"]
    assert edge["y"] == [-2.0]
    assert "20.00" in edge["hovertext"][0]  # the true score is there
    assert figure.caption.startswith("1 setting loses more than 2.00")


def test_up_is_better_for_an_error_too_and_its_figures_keep_their_sign() -> None:
    figure = tradeoff_figure(sweep((0.2, -0.1), (0.5, 0.2), (0.7, 0.3)), ERROR)
    assert figure
    low, high = figure.layout["yaxis"]["range"]
    assert low > high
    assert sorted(y for trace in figure.traces for y in trace["y"]) == [-0.1, 0.2, 0.3]


def test_a_sweep_in_which_nothing_was_scored_has_no_plot() -> None:
    assert tradeoff_figure(sweep((0.5, None)), ACCURACY) is None
