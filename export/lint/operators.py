"""Rules 101 to 107: the file, and whether this TensorRT supports each of its operators.

Sources: the operator tables of onnx-tensorrt for 8.5, 8.6, 10.0 and 10.1; its opset guide for 11.
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import AttributeProto, TensorProto

from ..onnx_graph.graph import QUANTIZED, attribute_of
from .finding import Finding
from .network import STANDARD, Network, label, type_name
from .platform import Platform, Version, operators
from .restrictions import RESTRICTIONS

# First version, and the opsets that it parses.
OPSETS: tuple[tuple[Version, int, int], ...] = (((11,), 9, 25), ((10,), 9, 20), ((8,), 7, 17))
LATEST_IR = {"8.5": 8, "8.6": 8, "10.0": 10, "10.1": 10}  # of the ONNX releases they were built with

_SHORT: dict[int, str] = {
    TensorProto.FLOAT: "f32",
    TensorProto.DOUBLE: "f32",  # cast down by every parser
    TensorProto.FLOAT16: "f16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.FLOAT8E4M3FN: "f8",
    TensorProto.INT4: "i4",
    TensorProto.INT8: "i8",
    TensorProto.INT32: "i32",
    TensorProto.INT64: "i64",
    TensorProto.UINT8: "u8",
    TensorProto.BOOL: "bool",
}
# The tables list the types of an operator's data: of these operators the output's, of others the input's.
_BY_OUTPUT = ("Constant", "ConstantOfShape", "EyeLike", "OneHot", "Range", "Where")
_ANY_TYPE = (*QUANTIZED, "If", "Loop", "Scan", "Shape", "Size", "NonMaxSuppression", "SequenceConstruct")


def opset(network: Network, platform: Platform) -> Iterator[Finding]:
    """101: the parser supports the opset."""
    least, most = next((low, high) for since, low, high in OPSETS if platform.version >= since)
    if not least <= network.opset <= most:
        what = f"it has opset {network.opset}; {platform.name} parses {least} to {most}"
        cure = f"Export at opset {min(most, 17)}, which every TensorRT since 8.5 parses."
        yield Finding(101, "error", "the file", what, cure)


def ir_version(network: Network, platform: Platform) -> Iterator[Finding]:
    """102: the file format is not newer than the ONNX release of the parser."""
    latest = LATEST_IR[platform.table]
    if platform.version < (11,) and network.model.ir_version > latest:
        what = (
            f"its IR version is {network.model.ir_version}; the parser of {platform.name} was built for "
            f"{latest}, and may misread newer ones"
        )
        cure = "Set the model's ir_version to 8, or export again with an opset of 17."
        yield Finding(102, "warning", "the file", what, cure)


def operator_taken(network: Network, platform: Platform) -> Iterator[Finding]:
    """103: this TensorRT supports every standard operator."""
    for node in network.every_node():
        if node.domain not in STANDARD:
            continue
        tables = operators().get(node.op_type)
        if tables is None or tables[platform.table] is None:
            since = next((table for table, types in (tables or {}).items() if types), None)
            what = f"{node.op_type} is not in the operator table of TensorRT {platform.table}"
            yield Finding(103, "error", label(node), what, _cure_for_missing(node.op_type, since))


def _cure_for_missing(operator: str, since: str | None) -> str:
    if operator.startswith("QLinear") or "Integer" in operator or operator == "DynamicQuantizeLinear":
        return "No TensorRT supports quantized operators: use QuantizeLinear / DequantizeLinear pairs."
    if since is not None:
        return f"Use TensorRT {since}, or replace it by other operators (a lower opset may do so)."
    return "Replace it by other operators, or compute it outside the network."


def operator_standard(network: Network, platform: Platform) -> Iterator[Finding]:
    """104: there are no custom operators."""
    for node in network.every_node():
        if node.domain in STANDARD:
            continue
        does = "without a plugin of that name the parser fails"
        if (operators().get(node.op_type) or {}).get(platform.table) is not None:
            # Observed in NVIDIA's parser: it looks an operator up only by its name.
            does = f"the parser uses only the name and would run ONNX's {node.op_type}"
        what = f"{node.domain}.{node.op_type} is not an ONNX operator; {does}"
        cure = "Replace it by standard operators, inline local functions, or load such a plugin first."
        yield Finding(104, "error", label(node), what, cure)


def restriction_kept(network: Network, platform: Platform) -> Iterator[Finding]:
    """105: no operator is used in a way that this parser refuses."""
    for node in network.every_node():
        check = RESTRICTIONS.get(node.op_type)
        if check is not None and node.domain in STANDARD:
            for fault in check(network, node, platform):
                yield Finding(105, "error", label(node), f"{node.op_type}: {fault.what}", fault.cure)


def types_taken(network: Network, platform: Platform) -> Iterator[Finding]:
    """106: each operator has an element type that is listed for it."""
    every = frozenset().union(*(row[platform.table] or frozenset() for row in operators().values()))
    for node in network.every_node():
        listed = (operators().get(node.op_type) or {}).get(platform.table)
        if listed is None or node.domain not in STANDARD or node.op_type in _ANY_TYPE:
            continue
        name = node.output[0] if node.op_type in _BY_OUTPUT or not node.input else node.input[0]
        kind = network.types.get(name, TensorProto.UNDEFINED)
        short = _SHORT.get(kind, "")
        if short == "i64" and platform.version < (10,):
            short = "i32"  # cast down
        known = type_name(kind)
        if kind == TensorProto.UNDEFINED or short in listed:
            continue
        if short in every:
            what = (
                f"{node.op_type} on {known} is not in the operator table of TensorRT {platform.table}, "
                f"which lists {', '.join(sorted(listed))}"
            )
            cure = "Cast to a listed type first."
            yield Finding(106, "warning", label(node), what, cure)
        else:
            what = f"{node.op_type} has the type {known}, which TensorRT {platform.table} has for no operator"
            cure = "Use FLOAT, FLOAT16, INT32 or BOOL."
            yield Finding(106, "error", label(node), what, cure)


def seed_used(network: Network, platform: Platform) -> Iterator[Finding]:
    """107: no random numbers have a seed."""
    for node in network.every_node():
        named = {each.name for each in node.attribute if each.type != AttributeProto.UNDEFINED}
        if node.op_type.startswith("Random") and "seed" in named:
            what = (
                f"{node.op_type}: its seed of {attribute_of(node, 'seed')} is ignored, and every run differs"
            )
            cure = "Make the numbers an input of the network, or a constant."
            yield Finding(107, "note", label(node), what, cure)
