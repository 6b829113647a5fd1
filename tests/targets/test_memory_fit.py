"""Whether a model fits: on figures that can be added up by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from deadweight.targets.errors import MeasurementError, TargetError
from deadweight.targets.memory_fit import LEAST_WORKSPACE_BYTES, Base, Footprint, base_of, fit, free_memory

MB = 10**6
NEED = Footprint(
    batch=1,
    runtime="tensorrt",
    weights_low_bytes=100 * MB,
    weights_high_bytes=200 * MB,
    activations_low_bytes=30 * MB,
    activations_high_bytes=50 * MB,
    peak_at="conv",
    inputs_bytes=10 * MB,
    outputs_bytes=1 * MB,
    largest_bytes=20 * MB,
)
SURE = Base(300 * MB, 500 * MB, "measured on this board", "high")
ROUGH = Base(0, 500 * MB, "a guess", "low")


def test_it_fits_where_even_the_most_is_free() -> None:
    found = fit(NEED, free_bytes=760 * MB, base=SURE)
    assert (found.outcome, found.low_bytes, found.high_bytes) == ("fits", 440 * MB, 760 * MB)
    assert found.checked() is found


def test_it_does_not_fit_where_even_the_least_is_not_free() -> None:
    found = fit(NEED, free_bytes=439 * MB, base=SURE)
    assert found.outcome == "does_not_fit"
    assert "exceeds that by 1 MB" in " ".join(found.words)
    with pytest.raises(TargetError, match="439 MB are free"):
        found.checked()


def test_between_the_two_nothing_is_claimed() -> None:
    assert fit(NEED, free_bytes=440 * MB, base=SURE).outcome == "cannot_tell"
    assert fit(NEED, free_bytes=759 * MB, base=SURE).outcome == "cannot_tell"


def test_a_figure_of_low_certainty_enters_no_verdict_and_the_room_for_it_is_reported() -> None:
    found = fit(NEED, free_bytes=5_000 * MB, base=ROUGH)
    assert found.outcome == "cannot_tell"
    assert "leaves 4.74 GB. Whether that is enough" in " ".join(found.words)
    assert "`deadweight doctor --on BOARD`" in " ".join(found.words)
    assert fit(NEED, free_bytes=141 * MB, base=ROUGH).outcome == "cannot_tell"
    assert fit(NEED, free_bytes=139 * MB, base=ROUGH).outcome == "does_not_fit"


def test_tenfold_room_for_a_base_that_is_only_estimated_is_a_fit() -> None:
    found = fit(NEED, free_bytes=5_260 * MB, base=ROUGH)
    assert found.outcome == "fits"
    assert "Even the upper end, 760 MB, leaves 4.5 GB." in " ".join(found.words)
    assert fit(NEED, free_bytes=5_259 * MB, base=ROUGH).outcome == "cannot_tell"


def test_unknown_sizes_leave_only_the_refusal() -> None:
    open_ended = replace(NEED, activations_high_bytes=None, unknown=("a", "b", "c", "d"))
    found = fit(open_ended, free_bytes=10_000 * MB, base=SURE)
    assert found.outcome == "cannot_tell"
    assert found.high_bytes is None
    assert "a, b, c and 1 more" in " ".join(found.words)
    assert fit(open_ended, free_bytes=400 * MB, base=SURE).outcome == "does_not_fit"


def test_building_holds_weights_twice_and_caps_the_workspace_by_what_is_left() -> None:
    found = fit(NEED, free_bytes=2000 * MB, base=SURE, building=True)
    assert found.workspace_bytes == (2000 - 960) * MB // 2
    assert found.outcome == "fits"
    tight = fit(NEED, free_bytes=961 * MB, base=SURE, building=True)
    assert tight.workspace_bytes == LEAST_WORKSPACE_BYTES
    assert tight.outcome == "cannot_tell"


def test_a_workspace_that_was_asked_for_is_counted() -> None:
    assert fit(NEED, free_bytes=2000 * MB, base=SURE, building=True, workspace_bytes=1100 * MB).outcome == (
        "cannot_tell"
    )


def test_no_workspace_is_given_to_a_build_that_cannot_fit() -> None:
    assert fit(NEED, free_bytes=200 * MB, base=SURE, building=True).workspace_bytes == 0


@pytest.mark.parametrize("version", ["8.5.2", "8.6", "10.3.0.30", "10.13.3.9", "11.4.1"])
def test_every_version_has_a_base_with_its_source(version: str) -> None:
    for building in (False, True):
        base = base_of(version, building=building)
        assert base.source
        assert 0 <= base.low_bytes < base.high_bytes
    assert base_of(version, building=True).high_bytes > base_of(version).high_bytes


def test_a_base_of_no_version_is_refused_and_a_cpu_has_none() -> None:
    with pytest.raises(TargetError, match="'new'"):
        base_of("new")
    assert base_of(None).high_bytes == 0


def test_free_memory_is_what_can_be_had_not_what_lies_idle(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    text = "MemTotal:  7989648 kB\nMemFree:  200 kB\nMemAvailable:  1000 kB\n"
    (tmp_path / "proc/meminfo").write_text(text)
    assert free_memory(tmp_path) == 1_024_000
    (tmp_path / "proc/meminfo").write_text("MemTotal:  7989648 kB\n")
    with pytest.raises(MeasurementError, match="MemAvailable"):
        free_memory(tmp_path)
    with pytest.raises(MeasurementError, match="cannot be read"):
        free_memory(tmp_path / "nowhere")


def test_memory_that_is_not_there_cannot_be_planned() -> None:
    with pytest.raises(TargetError, match="0 bytes free"):
        fit(NEED, free_bytes=0, base=SURE)
