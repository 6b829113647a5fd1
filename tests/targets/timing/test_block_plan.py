from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deadweight.targets.timing.block_plan import clock_costs_ns, planned
from deadweight.targets.timing.measurement import Protocol


@given(st.lists(st.integers(min_value=500, max_value=10**9), min_size=1, max_size=6))
def test_reading_the_clocks_takes_no_more_than_its_share(times_ns: list[int]) -> None:
    wall_cost_ns, cpu_cost_ns = clock_costs_ns()
    run_ns = {f"model{index}": time_ns for index, time_ns in enumerate(times_ns)}
    for name, block in planned(run_ns, Protocol()).blocks.items():
        sample_ns = block.runs * run_ns[name]
        # Costs are measured anew within, so they may differ by as much as a busy machine makes them.
        assert wall_cost_ns <= 3 * 0.001 * sample_ns
        assert cpu_cost_ns <= 3 * 0.001 * sample_ns * block.samples
        assert block.settling >= 1


def test_models_of_about_the_same_speed_get_the_same_block() -> None:
    blocks = planned({"a": 100_000, "b": 103_000, "c": 145_000, "d": 900_000}, Protocol()).blocks
    assert blocks["a"] == blocks["b"] == blocks["c"]
    assert blocks["d"] != blocks["a"]


def test_slow_models_still_get_the_fewest_rounds_and_fast_ones_fill_the_event() -> None:
    protocol = Protocol(event_s=0.1, block_s=0.005, settle_s=0.005, min_rounds=3)
    assert planned({"a": 200_000_000}, protocol).rounds == 3
    assert planned({"a": 100_000, "b": 100_000}, protocol).rounds == 10
