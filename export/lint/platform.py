"""The platform of the rules: a version of TensorRT, its operator table, and the board if given.

The tables are those of onnx-tensorrt for 8.5, 8.6, 10.0 and 10.1: in operators.csv a cell has the element
types that a version supports, and an empty cell means that it does not support the operator. Later versions
have no known table; they are judged by the newest, and a remark says so.
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
# Besides placement's MOVES: what also moves values, or computes in the precision of its inputs.
_ANY_PRECISION = (
    *("Resize", "Split", "Identity", "Dropout", "SpaceToDepth", "Expand", "Tile"),
    *("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "BatchNormalization"),
)
_NO_NUMBERS = ("Shape", "Size", "Constant")


@dataclass(frozen=True)
class Platform:
    """A TensorRT version and its board; `table` is the operator table for it."""

    version: Version
    table: str
    board: Target | None = None

    @classmethod
    def of(cls, board: Target | None = None, tensorrt: str | None = None) -> Platform:
        """The platform of a board, of a version, or of a board with another version than its own.

        With neither it is the newest TensorRT with a table.

        Raises:
            TargetError: the version is malformed or too old; the board has no TensorRT, or an unknown one.
        """
        if board is not None and not board.runtime.linted:
            raise TargetError(
                f"{board.name} runs {board.runtime}; lint has only the rules of TensorRT.",
                "Give a Jetson board, see `deadweight targets`, or only --tensorrt.",
            )
        text = NEWEST if tensorrt is None else tensorrt
        if tensorrt is None and board is not None:
            text = str(board.certain("tensorrt") or "")
            if not text:
                raise TargetError(
                    f"The TensorRT version of {board.name} is not certain.", "Give it: --tensorrt 10.3."
                )
        version = _version(text)
        older = [name for name, known in TABLES.items() if known <= version[:2]]
        if not older:
            raise TargetError(
                f"TensorRT {text} is older than the oldest table, that of {next(iter(TABLES))}.",
                f"Use one of {', '.join(TABLES)}, or a later one.",
            )
        return cls(version, older[-1], board)

    @property
    def name(self) -> str:
        """For readers: "TensorRT 10.3.0"."""
        return f"TensorRT {'.'.join(map(str, self.version))}"

    def types(self, operator: str) -> frozenset[str] | None:
        """The element types that this TensorRT supports for an operator; None for an unsupported operator.

        Raises:
            KeyError: the operator is in no table.
        """
        return operators()[operator][self.table]

    @property
    def dla_cores(self) -> int:
        """The number of DLA cores of the board that this TensorRT supports."""
        if self.board is None:
            return 0
        supported, cores = self.board.certain("dla_tensorrt"), self.board.certain("dla_cores")
        ranges = supported if isinstance(supported, list) else []
        return cores if isinstance(cores, int) and any(self._within(text) for text in ranges) else 0

    def _within(self, text: str) -> bool:
        bound = _version(text.lstrip("<>="))
        here = self.version[: len(bound)]
        return here <= bound if text.startswith("<=") else here >= bound

    def words(self) -> list[str]:
        """Remarks for the reader on how this platform was judged."""
        remarks = []
        if self.version[:2] != TABLES[self.table]:
            which = "the newest" if self.table == NEWEST else "the nearest older"
            remarks.append(f"{self.name} is judged by the operator table of {self.table}, {which} known one.")
        if self.board is None:
            remarks.append("No board was given, so widths and DLA were not judged.")
        elif self.dla_cores:
            remarks.append("What DLA leaves to the GPU is from NVIDIA's lists; only the builder decides.")
        elif self.board.certain("dla_cores"):
            remarks.append(f"{self.name} does not support the DLA of {self.board.name}.")
        return remarks


def _version(text: str) -> Version:
    if not re.fullmatch(r"\d+\.\d+(\.\d+)*", text):
        raise TargetError(f"{text!r} is not a version of TensorRT.", "Write it as 8.5, 10.3 or 10.13.3.9.")
    return tuple(map(int, text.split(".")))


@functools.cache
def operators() -> dict[str, dict[str, frozenset[str] | None]]:
    """By operator and table, the supported element types; None where it is not supported."""
    with Path(__file__).with_name("operators.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["operator"]: {table: frozenset(row[table].split()) or None for table in TABLES}
            for row in csv.DictReader(file)
        }


@functools.cache
def keeps_int8(operator: str) -> bool:
    """Whether an operator between int8 ones runs without a change of precision.

    It moves values, fuses into the kernel before it, or has int8 in the table of TensorRT 8.6, the last table
    that lists such kernels.
    """
    if operator in _NO_NUMBERS or operator in WEIGHTED:
        return False
    listed = (operators().get(operator) or {}).get("8.6") or frozenset()
    return operator in MOVES or operator in _ANY_PRECISION or "i8" in listed
