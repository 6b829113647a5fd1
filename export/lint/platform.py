"""For whom the rules judge: a version of TensorRT, its operator table, and the board where one is named.

The tables are those that onnx-tensorrt published for 8.5, 8.6, 10.0 and 10.1: in operators.csv a cell holds
the element types that a version takes, and an empty cell means that it does not take the operator. Later
versions published none that is known here; they are judged by the newest, and a sentence says so.
"""

from __future__ import annotations

import csv
import functools
import re
from dataclasses import dataclass
from pathlib import Path

from ...targets.errors import TargetError
from ...targets.target import Target
from ..onnx_graph.graph import WEIGHTED
from ..quantization.placement import MOVES

Version = tuple[int, ...]
TABLES: dict[str, Version] = {"8.5": (8, 5), "8.6": (8, 6), "10.0": (10, 0), "10.1": (10, 1)}
NEWEST = "10.1"
# Beyond placement's MOVES: what else passes numbers on, or is computed in whatever precision its inputs have.
_PASSED_ON = (
    *("Resize", "Split", "Identity", "Dropout", "SpaceToDepth", "Expand", "Tile"),
    *("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "BatchNormalization"),
)
_NO_NUMBERS = ("Shape", "Size", "Constant")


@dataclass(frozen=True)
class Platform:
    """A TensorRT and the board it runs on; `table` is the operator table it is judged by."""

    version: Version
    table: str
    board: Target | None = None

    @classmethod
    def of(cls, board: Target | None = None, tensorrt: str | None = None) -> Platform:
        """The platform of a board, of a version, or of a board with another version than its own.

        With neither it is the newest TensorRT that has a table.

        Raises:
            TargetError: the version is none or too old; the board runs no TensorRT, or none that is known.
        """
        if board is not None and not board.runtime.linted:
            raise TargetError(
                f"{board.name} runs {board.runtime}; lint knows the rules of TensorRT.",
                "Name a Jetson board, see `deadweight targets`, or give --tensorrt alone.",
            )
        told = NEWEST if tensorrt is None else tensorrt
        if tensorrt is None and board is not None:
            told = str(board.certain("tensorrt") or "")
            if not told:
                raise TargetError(
                    f"Which TensorRT {board.name} runs is not known for sure.", "Give it: --tensorrt 10.3."
                )
        version = _version(told)
        older = [name for name, known in TABLES.items() if known <= version[:2]]
        if not older:
            raise TargetError(
                f"TensorRT {told} is older than the oldest table, that of {next(iter(TABLES))}.",
                f"Give one of {', '.join(TABLES)}, or a later one.",
            )
        return cls(version, older[-1], board)

    @property
    def name(self) -> str:
        """As a reader knows it: "TensorRT 10.3.0"."""
        return f"TensorRT {'.'.join(map(str, self.version))}"

    def types(self, operator: str) -> frozenset[str] | None:
        """The element types with which this TensorRT takes an operator; None where it does not take it.

        Raises:
            KeyError: the operator is in no table.
        """
        return operators()[operator][self.table]

    @property
    def dla_cores(self) -> int:
        """The deep learning accelerators that this TensorRT reaches on this board."""
        if self.board is None:
            return 0
        reached, cores = self.board.certain("dla_tensorrt"), self.board.certain("dla_cores")
        ranges = reached if isinstance(reached, list) else []
        return cores if isinstance(cores, int) and any(self._within(told) for told in ranges) else 0

    def _within(self, told: str) -> bool:
        bound = _version(told.lstrip("<>="))
        here = self.version[: len(bound)]
        return here <= bound if told.startswith("<=") else here >= bound

    def words(self) -> list[str]:
        """What a reader must know of how this platform was judged."""
        said = []
        if self.version[:2] != TABLES[self.table]:
            which = "the newest" if self.table == NEWEST else "the nearest older one"
            said.append(
                f"{self.name} is judged by the operator table of {self.table}, {which} that is known."
            )
        if self.board is None:
            said.append("No board was named, so widths and deep learning accelerators were not judged.")
        elif self.dla_cores:
            said.append("What DLA hands back is told from NVIDIA's lists; the builder has the last word.")
        elif self.board.certain("dla_cores"):
            said.append(f"{self.name} does not reach the deep learning accelerators of {self.board.name}.")
        return said


def _version(told: str) -> Version:
    if not re.fullmatch(r"\d+\.\d+(\.\d+)*", told):
        raise TargetError(f"{told!r} is no version of TensorRT.", "Write it as 8.5, 10.3 or 10.13.3.9.")
    return tuple(map(int, told.split(".")))


@functools.cache
def operators() -> dict[str, dict[str, frozenset[str] | None]]:
    """By operator and table, the element types that it is taken with; None where it is not taken."""
    with Path(__file__).with_name("operators.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["operator"]: {table: frozenset(row[table].split()) or None for table in TABLES}
            for row in csv.DictReader(file)
        }


@functools.cache
def keeps_int8(operator: str) -> bool:
    """Whether an operator between int8 ones runs there without a change of precision around it.

    It moves numbers, joins the kernel before it, or is listed with int8 by TensorRT 8.6, whose table still
    says which operators have such kernels.
    """
    if operator in _NO_NUMBERS or operator in WEIGHTED:
        return False
    listed = (operators().get(operator) or {}).get("8.6") or frozenset()
    return operator in MOVES or operator in _PASSED_ON or "i8" in listed
