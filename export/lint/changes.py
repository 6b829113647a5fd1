"""What changed between TensorRT's versions where its operator tables say nothing: operators and plugins.

changes.csv has what NVIDIA's CHANGELOG.md (NVIDIA/TensorRT, releases 10.2.0 to 11.1) says that the parser
learnt, by version; without a feature it is the operator itself. plugins.csv has the names that the folder
`plugin` of the same repository registers in the releases 8.4 to 11.1, and the release that removed a name.
Operators that the parser imports as a plugin are from onnx-tensorrt's importers, 8.4-GA to 10.1-GA.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from pathlib import Path

from onnx import NodeProto

from ..onnx_graph.graph import attribute_of
from ..onnx_graph.operator_sets import read_sets

Version = tuple[int, ...]

LATEST: Version = (11, 1)  # the last release in both tables
# The time of the parser of TensorRT-RTX 1.7.1.
REFUSED_UNTIL: Version = (11, 4)
SETS = read_sets(Path(__file__).with_name("tensorrt.toml"))


def version_of(text: str) -> Version:
    """The numbers of a version, e.g. (10, 3) of "10.3"."""
    return tuple(map(int, text.split(".")))


def since(operator: str, feature: str = "") -> Version | None:
    """The version that learnt an operator, or a feature of it; None where NVIDIA's CHANGELOG has neither."""
    return _changes().get((operator, feature))


def plugin(operator: str) -> tuple[Version, Version | None] | None:
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
    if plugin(node.op_type):
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
