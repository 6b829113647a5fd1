from __future__ import annotations

import math

import pytest

from deadweight.pipeline.report.units import (
    ScoreScale,
    by_name,
    capital,
    count,
    duration,
    moment,
    signed,
    significant,
    size,
    spoken,
    time_unit,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (3.1, "3.10"),
        (9.999, "10.0"),
        (0.9999, "1.00"),
        (0.0123, "0.0123"),
        (31245, "31,245"),
        (-2.5, "\N{MINUS SIGN}2.50"),
        (1e-9, "1e-09"),
    ],
)
def test_three_digits_are_kept_whatever_the_size(value: float, text: str) -> None:
    assert significant(value) == text


def test_a_number_beyond_the_floats_is_shown_as_such() -> None:
    assert duration(math.inf) == "inf\N{NO-BREAK SPACE}s"
    assert significant(math.nan) == "nan"


def test_counts_sizes_and_times_carry_their_unit() -> None:
    texts = [count(1_333_770), count(9_999), size(5_336_411), duration(0.000118), duration(200)]
    assert [text.replace("\N{NO-BREAK SPACE}", " ") for text in texts] == [
        "1.33 M",
        "9,999",
        "5.34 MB",
        "0.118 ms",
        "3 min 20 s",
    ]


def test_a_column_of_times_has_one_unit_taken_from_the_smallest() -> None:
    assert time_unit([2e-6, 1.0]) == (1e-6, "\N{MICRO SIGN}s")
    assert time_unit([5e-5, 0.4]) == (1e-3, "ms")
    assert time_unit([]) == (1.0, "s")


def test_a_change_that_rounds_to_zero_has_no_sign() -> None:
    assert signed(-0.001, 2) == "0.00"
    assert signed(0.2, 2) == "+0.20"


def test_an_accuracy_is_read_in_percent_and_an_error_as_it_is() -> None:
    accuracy = ScoreScale.of("accuracy", higher_is_better=True, scores=[0.887, None])
    error = ScoreScale.of("mean error", higher_is_better=False, scores=[0.4132])
    assert accuracy.text(0.887) == "88.70\N{NO-BREAK SPACE}%"
    assert accuracy.change(-0.0021) == "\N{MINUS SIGN}0.21\N{NO-BREAK SPACE}points"
    assert error.text(0.4132) == "0.4132"
    assert error.loss(0.1) == 0.1
    assert accuracy.loss(0.1) == -0.1


def test_the_end_of_a_name_is_the_unit_of_its_value() -> None:
    assert by_name("settle_s", 0.005).split() == ["5.00", "ms"]
    assert by_name("memory_bytes", 2_162_688).split() == ["2.16", "MB"]
    assert by_name("clocks_hz", [2_500_000_000]).split() == ["2.50", "GHz"]
    assert by_name("governor", None) == "not known"
    assert by_name("learning_rate", 0.0005) == "0.0005"
    assert spoken("memory_bytes") == "memory"


def test_a_name_with_capitals_of_its_own_keeps_them() -> None:
    assert [capital(name) for name in ("accuracy", "mIoU", "mAP50", "RMSE")] == [
        "Accuracy",
        "mIoU",
        "mAP50",
        "RMSE",
    ]
    assert capital("no mIoU") == "No mIoU"


def test_a_time_of_day_is_reported_in_utc_and_nonsense_is_left_alone() -> None:
    assert moment("2026-01-31T10:41:00+01:00") == "2026-01-31 09:41 UTC"
    assert moment("yesterday") == "yesterday"
