"""A table that several boards make: planted clocks that are slower, unlike, in another state, or cut off."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.budget.planted import Clock, chain
from deadweight.export.onnx_graph.graph import load
from deadweight.pipeline.budget.boards import shared
from deadweight.pipeline.budget.grids import Network
from deadweight.pipeline.budget.measured import table_of
from deadweight.pipeline.budget.resized import of_file
from deadweight.pipeline.budget.table import DENSE, SegmentTable, load_table
from deadweight.pipeline.budget.timer import Together
from deadweight.targets.errors import DeadweightError, MeasurementError, RecipeError, TargetError
from deadweight.targets.target import load_target
from deadweight.targets.timing.measurement import Measurement, Protocol


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """Two convolutions of 32 and 40 channels, at every eighth of them and above."""
    made = of_file(load(chain(tmp_path_factory.mktemp("chain") / "m.onnx", [32, 40])), load_target("x86-cpu"))
    return Network(made.file_at, dict.fromkeys(made.levels, (8, 16, 24, 32, 40, 48)), made.dense)


@dataclasses.dataclass
class Slower(Clock):
    """A clock by which all takes some factor longer, or that cannot be reached after some timings."""

    factor: float = 1.0
    cut_after: int = 1 << 30

    def true_s(self, model: object) -> float:
        return self.factor * super().true_s(model)  # type: ignore[arg-type]

    def together(self, files: Mapping[str, Path], protocol: Protocol) -> dict[str, Measurement]:
        if self.timings > self.cut_after:
            raise TargetError("The connection broke.", "Plug it in.")
        return super().together(files, protocol)


def table(network: Network, path: Path, clocks: Mapping[str, Together], said: list[str]) -> SegmentTable:
    return table_of(network, clocks, path, runtime="onnxruntime", networks=24, twice=6, begun=said.append)


def test_boards_that_differ_by_a_factor_share_the_timings_and_the_table_is_that_of_the_first(
    network: Network, tmp_path: Path
) -> None:
    clocks = {"one": Slower(16, noise=0.002), "two": Slower(16, noise=0.002, seed=1, factor=1.07)}
    made = table(network, tmp_path / "t.json", {name: one.together for name, one in clocks.items()}, [])
    (two,) = made.boards
    assert two.name == "two"
    assert two.ratio == pytest.approx(1.07, rel=0.01)
    assert two.apart < 0.02
    assert {*made.timed_on["seconds"].values()} == {*made.timed_on["networks"].values()} == {"one", "two"}
    assert {*made.timed_on["seconds"]} == {*made.seconds} - {DENSE}
    # Every time is that of the same clock: of one board's, or of the other's.
    alone = table(network, tmp_path / "alone.json", {"one": Slower(16, noise=0.0).together}, [])
    scale = made.seconds[DENSE] / alone.seconds[DENSE]
    assert all(
        made.seconds[key] / scale == pytest.approx(alone.seconds[key], rel=0.02) for key in made.seconds
    )
    assert alone.boards == ()
    assert load_table(tmp_path / "t.json").boards == made.boards


@pytest.mark.parametrize(
    ("other", "kind", "said"),
    [
        (
            Slower(32, noise=0.002),
            MeasurementError,
            r"two is not as one: the whole network takes \d\.\d+ times",
        ),
        (
            Slower(16, evidence="emulated"),
            RecipeError,
            "the evidence is simulated on one and emulated on two",
        ),
    ],
    ids=["other steps", "another state"],
)
def test_boards_that_are_unlike_are_refused_before_a_table_is_made_of_both(
    other: Clock, kind: type[DeadweightError], said: str, network: Network, tmp_path: Path
) -> None:
    clocks = {"one": Slower(16, noise=0.002).together, "two": other.together}
    with pytest.raises(kind, match=said) as caught:
        table(network, tmp_path / "t.json", clocks, [])
    assert "make a table on each" in caught.value.cure
    assert not (tmp_path / "t.json").exists()


def test_parts_are_timed_at_the_same_time() -> None:
    both = threading.Barrier(2)

    def timed(clock: Together, part: str) -> Mapping[str, Measurement]:
        both.wait(timeout=60)  # for the other board
        return {}

    clocks: dict[str, Together] = dict.fromkeys(("one", "two"), Clock(16).together)
    assert sorted(shared(["a", "b"], clocks, timed, print)) == [("one", {}), ("two", {})]


def test_the_share_of_a_board_that_is_lost_goes_to_the_others(network: Network, tmp_path: Path) -> None:
    two, said = Slower(16, noise=0.002, cut_after=46), list[str]()  # the A/A is over then
    made = table(
        network, tmp_path / "t.json", {"one": Slower(16, noise=0.002).together, "two": two.together}, said
    )
    assert len(made.networks) == 31
    assert re.search(r"two times no more, the others go on: The connection broke\.", said[-1])


def test_where_all_boards_are_lost_the_same_command_goes_on(network: Network, tmp_path: Path) -> None:
    path, clocks = tmp_path / "t.json", [Slower(16, cut_after=46, noise=0.002) for _ in range(2)]
    with pytest.raises(TargetError, match="connection broke"):
        table(network, path, {str(at): one.together for at, one in enumerate(clocks)}, [])
    before = load_table(path)
    assert before.seconds
    for one in clocks:
        one.cut_after = 1 << 30
    whole = table(network, path, {str(at): one.together for at, one in enumerate(clocks)}, [])
    assert {key: whole.seconds[key] for key in before.seconds} == before.seconds
    assert len(whole.networks) == 31
