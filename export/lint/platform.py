"""The platform of the rules: a version of TensorRT, its operator table, and the board if given.

The tables are those of onnx-tensorrt for 8.4, 8.5, 8.6, 10.0 and 10.1: in operators.csv a cell has the
element types that a version supports, and an empty cell means that it does not support the operator. Later
versions have no known table; they are judged by the newest and by what NVIDIA says of changes.

changes.csv has what NVIDIA's CHANGELOG.md (NVIDIA/TensorRT, releases 10.2.0 to 11.1) says that the parser
learnt, by version; without a feature it is the operator itself. plugins.csv has the names that the folder
`plugin` of the same repository registers in the releases 8.4 to 11.1, and the release that removed a name.
Operators that the parser imports as a plugin are from onnx-tensorrt's importers, 8.4-GA to 10.1-GA.
"""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from onnx import NodeProto

from ...targets.errors import TargetError
from ...targets.target import Target
from ..onnx_graph.graph import WEIGHTED, attribute_of
from ..onnx_graph.operator_sets import read_sets
from ..quantization.placement import MOVES

Version = tuple[int, ...]

LATEST: Version = (11, 1)  # the last release in both tables
# The time of the parser of TensorRT-RTX 1.7.1.
REFUSED_UNTIL: Version = (11, 4)
SETS = read_sets(Path(__file__).with_name("tensorrt.toml"))
TABLES: dict[str, Version] = {"8.4": (8, 4), "8.5": (8, 5), "8.6": (8, 6), "10.0": (10, 0), "10.1": (10, 1)}
NEWEST = "10.1"
LIKE_NEWEST: Version = (10, 3)


@dataclass(frozen=True)
class Platform:
    """A TensorRT version and its board.

    Attributes:
        table: the operator table for the version.
        for_dla: whether the file is meant for the board's DLA, not for its GPU.
    """

    version: Version
    table: str
    board: Target | None = None
    for_dla: bool = False

    @classmethod
    def of(
        cls, board: Target | None = None, tensorrt: str | None = None, *, for_dla: bool = False
    ) -> Platform:
        """The platform of a board, of a version, or of a board with another version than its own.

        With neither it is the newest TensorRT with a table.

        Raises:
            TargetError: the version is malformed or too old; the board has no TensorRT, an unknown one, or
                no DLA that it supports.
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
        made = cls(version, older[-1], board, for_dla)
        if for_dla and not made.dla_cores:
            raise TargetError(
                f"{made.name} has no DLA on {'no board' if board is None else board.name}.",
                "Give a board whose TensorRT supports its DLA, such as agx-orin-64gb, or omit --dla.",
            )
        return made

    @property
    def name(self) -> str:
        """For readers: "TensorRT 10.3.0"."""
        return f"TensorRT {'.'.join(map(str, self.version))}"

    @property
    def newer(self) -> bool:
        """Whether the parser may have learnt what no table says. 10.3's is 10.1's but for changes.csv."""
        return self.version[:2] > LIKE_NEWEST

    def has(self, operator: str, feature: str = "") -> bool:
        """Whether NVIDIA's CHANGELOG says that this or an earlier version learnt an operator or a feature."""
        learnt = learnt_in(operator, feature)
        return learnt is not None and self.version >= learnt

    def supports(self, operator: str) -> bool | None:
        """Whether this TensorRT supports an ONNX operator; None where no table says."""
        row = operators().get(operator)
        if (row is not None and row[self.table] is not None) or self.has(operator):
            return True
        refused = row is not None or operator in SETS["refused"]
        if refused and self.version[:2] <= REFUSED_UNTIL:
            return False
        return False if not self.newer or learnt_in(operator) is not None else None

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
            last = ".".join(map(str, LATEST))
            also = f", and by NVIDIA's list of changes up to {last}" if self.newer else ""
            remarks.append(
                f"{self.name} is judged by the operator table of {self.table}, {which} known one{also}."
            )
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
    return version_of(text)


@functools.cache
def operators() -> dict[str, dict[str, frozenset[str] | None]]:
    """By operator and table, the supported element types; None where it is not supported."""
    return {
        row["operator"]: {table: frozenset(row[table].split()) or None for table in TABLES}
        for row in _rows("operators.csv")
    }


@functools.cache
def keeps_int8(operator: str) -> bool:
    """Whether an operator between int8 ones runs without a change of precision.

    It moves values, fuses into the kernel before it, or has int8 in the table of TensorRT 8.6, the last table
    that lists such kernels.
    """
    if operator in SETS["no_numbers"] or operator in WEIGHTED:
        return False
    listed = (operators().get(operator) or {}).get("8.6") or frozenset()
    return operator in MOVES or operator in SETS["any_precision"] or "i8" in listed


def version_of(text: str) -> Version:
    """The numbers of a version, e.g. (10, 3) of "10.3"."""
    return tuple(map(int, text.split(".")))


def learnt_in(operator: str, feature: str = "") -> Version | None:
    """The version that learnt an operator, or a feature of it; None where NVIDIA's CHANGELOG has neither."""
    return _changes().get((operator, feature))


def plugin_versions(operator: str) -> tuple[Version, Version | None] | None:
    """The first version with a standard plugin of this name, and the one that removed it."""
    return _plugins().get(operator)


def imported_as(node: NodeProto, version: Version) -> str:
    """The name of the plugin as which the parser imports an ONNX operator; "" where it has a layer for it."""
    first, last, name = _AS_PLUGIN.get(node.op_type, ((), (), ""))
    if node.op_type == "ScatterElements" and attribute_of(node, "reduction", b"none") == b"none":
        return ""
    return name if first <= version and (not last or version < last) else ""


def uses_plugin(node: NodeProto, version: Version) -> str:
    """The name of the plugin of NVIDIA's that an operator needs, in any domain; "" for none."""
    if plugin_versions(node.op_type):
        return node.op_type
    return imported_as(node, version) if node.domain in ("", "ai.onnx") else ""


_AS_PLUGIN: Mapping[str, tuple[Version, Version, str]] = {  # since, until, name
    "DeformConv": ((10, 1), (), "ModulatedDeformConv2d"),
    "InstanceNormalization": ((8,), (10,), "InstanceNormalization_TRT"),  # then a layer, by default
    "NonMaxSuppression": ((8,), (8, 5), "EfficientNMS_ONNX_TRT"),
    "RoiAlign": ((8, 5), (), "ROIAlign_TRT"),
    "ScatterElements": ((10,), (), "ScatterElements"),
}


@functools.cache
def _changes() -> dict[tuple[str, str], Version]:
    return {(row["operator"], row["feature"]): version_of(row["version"]) for row in _rows("changes.csv")}


@functools.cache
def _plugins() -> dict[str, tuple[Version, Version | None]]:
    return {
        row["plugin"]: (version_of(row["since"]), version_of(row["removed"]) if row["removed"] else None)
        for row in _rows("plugins.csv")
    }


def _rows(name: str) -> list[dict[str, str]]:
    with Path(__file__).with_name(name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
