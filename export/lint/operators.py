"""Rules 101 to 109: the file, and whether this TensorRT supports each of its operators.

Sources: the operator tables and importers of onnx-tensorrt for 8.4 to 10.1, NVIDIA's opset guide, and what
platform.py names. No parser has an upper limit of the opset; a newer operator than it knows is read by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from onnx import AttributeProto, NodeProto, TensorProto, defs

from ..onnx_graph.graph import attribute_of
from ..onnx_graph.operator_sets import read_sets
from .network import STANDARD, Finding, Network, Severity, label, type_name
from .platform import SETS, Platform, Version, learnt_in, operators, plugin_versions, uses_plugin
from .restrictions import RESTRICTIONS

# First version, and the opsets that NVIDIA names for it.
OPSETS: tuple[tuple[Version, int, int], ...] = (((11,), 9, 25), ((10,), 9, 20), ((8,), 7, 17))
LATEST_IR = {"8": 8, "10": 10}  # by major version, of the ONNX releases they were built with

_TYPES = read_sets(Path(__file__).with_name("types.toml"))
_SHORT = {name: short for short, names in _TYPES.items() for name in names}


def opset(network: Network, platform: Platform) -> Iterator[Finding]:
    """101: NVIDIA names the opset for this parser."""
    least, most = next((low, high) for since, low, high in OPSETS if platform.version >= since)
    if not least <= network.opset <= most:
        newer = sorted({node.op_type for node in network.every_node() if _defined_after(node, network, most)})
        by = f"; of its operators these were defined anew since: {', '.join(newer)}" if newer else ""
        what = f"it has opset {network.opset}; for {platform.name} NVIDIA names {least} to {most}{by}"
        cure = (
            f"The parser tries it all the same; opset {min(most, 17)} is safe for every TensorRT since 8.5."
        )
        yield Finding(101, "warning", "the file", what, cure)


def _defined_after(node: NodeProto, network: Network, opset: int) -> bool:
    try:
        since = defs.get_schema(node.op_type, network.opset, "").since_version
    except defs.SchemaError:
        return False
    return node.domain in STANDARD and int(since) > opset


def ir_version(network: Network, platform: Platform) -> Iterator[Finding]:
    """102: the file format is not newer than the ONNX release of the parser."""
    latest = LATEST_IR[platform.table.partition(".")[0]]
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
        name = node.op_type
        if node.domain not in STANDARD or plugin_versions(name) or (known := platform.supports(name)):
            continue
        tables = operators().get(name) or {}
        since = next((table for table, types in tables.items() if types), None)
        learnt = learnt_in(name)
        # In an opset that is known here, an operator that ONNX does not have is none of a newer ONNX.
        if known is None and (defs.has(name) or network.opset > defs.onnx_opset_version()):
            what = f"{name} is in no table that deadweight has; {platform.name} may support it"
            cure = "Ask NVIDIA's parser: deadweight lint --ask-parser, or trtexec --onnx=MODEL on the board."
            yield Finding(103, "warning", label(node), what, cure)
            continue
        if learnt is not None:
            since = ".".join(map(str, learnt))
        what = f"{name} is not in the operator table of TensorRT {platform.table}"
        yield Finding(103, "error", label(node), what, _cure_for_missing(name, since))


def _cure_for_missing(operator: str, since: str | None) -> str:
    if operator.startswith("QLinear") or "Integer" in operator or operator == "DynamicQuantizeLinear":
        return "No TensorRT supports quantized operators: use QuantizeLinear / DequantizeLinear pairs."
    if since is not None:
        return f"Use TensorRT {since}, or replace it by other operators (a lower opset may do so)."
    return "Replace it by other operators, or compute it outside the network."


def operator_standard(network: Network, platform: Platform) -> Iterator[Finding]:
    """104: there are no custom operators."""
    for node in network.every_node():
        own = platform.has(node.op_type) and not defs.has(node.op_type)  # a custom operator of NVIDIA's
        if node.domain in STANDARD or plugin_versions(node.op_type) or own:
            continue
        does = "without a plugin of that name the parser fails"
        severity: Severity = "error"
        if platform.supports(node.op_type):
            # Observed in NVIDIA's parser: it looks an operator up only by its name.
            does = f"the parser uses only the name and would run ONNX's {node.op_type}"
            severity = "warning"
        what = f"{node.domain}.{node.op_type} is not an ONNX operator; {does}"
        cure = "Replace it by standard operators, inline local functions, or build with --plugin LIBRARY."
        yield Finding(104, severity, label(node), what, cure)


def plugin(network: Network, platform: Platform) -> Iterator[Finding]:
    """109: no operator needs a plugin of NVIDIA's."""
    for node in network.every_node():
        name = uses_plugin(node, platform.version)
        if not name:
            continue
        since, removed = plugin_versions(node.op_type) or ((), None)
        severity: Severity = "note"
        what = f"{node.op_type} runs as NVIDIA's plugin {name}"
        cure = (
            "Nothing with deadweight, which registers NVIDIA's plugins when it builds and opens an engine. "
            "Another program must call init_libnvinfer_plugins first. TensorRT-RTX has no plugins."
        )
        if platform.version < since or (removed is not None and platform.version >= removed):
            severity = "error"
            gone = platform.version >= since and removed is not None
            when = (
                f"{'.'.join(map(str, removed or since))} {'removed it' if gone else 'is the first with it'}"
            )
            what = f"{node.op_type} is a plugin that {platform.name} does not have: TensorRT {when}"
            cure = "Export without it, or build with --plugin LIBRARY and a library that has it."
        yield Finding(109, severity, label(node), what, cure)


def output_sizes(network: Network, platform: Platform) -> Iterator[Finding]:
    """108: how large an output is does not depend on the data."""
    unsized: dict[str, str] = {}  # by tensor, the operator whose result has no size before the run
    for node in network.nodes:
        by = next((unsized[name] for name in node.input if name in unsized), "")
        if node.op_type in SETS["unsized"]:
            by = label(node)
        for name in node.output if by else ():
            shape = network.shapes.get(name)
            # A fixed size ends it, unless it is that of a shape, with which another tensor gets its own.
            integers = network.types.get(name) == TensorProto.INT64 and shape is not None and len(shape) < 2
            if shape is None or None in shape or node.op_type in SETS["unsized"] or integers:
                unsized[name] = by
    for name in (value.name for value in network.model.graph.output if value.name in unsized):
        if None not in network.shapes.get(name, (None,)):
            continue
        what = (
            f"how large the output {name!r} is depends on the data, by {unsized[name]!r}: it is allocated "
            "during the run, no CUDA graph holds it, and times depend on the input"
        )
        cure = (
            "End the network in boxes and scores and select outside, or export EfficientNMS_TRT, whose "
            "outputs have a fixed size. deadweight reads outputs without one from TensorRT 8.5 on."
        )
        maker = network.index.producer.get(name)
        yield Finding(108, "warning", label(maker) if maker is not None else name, what, cure)


def restriction_kept(network: Network, platform: Platform) -> Iterator[Finding]:
    """105: no operator is used in a way that this parser refuses."""
    for node in network.every_node():
        check = RESTRICTIONS.get(node.op_type)
        if check is not None and node.domain in STANDARD:
            for fault in check(network, node, platform):
                severity: Severity = "warning" if fault.unsure else "error"
                yield Finding(105, severity, label(node), f"{node.op_type}: {fault.what}", fault.cure)


def types_taken(network: Network, platform: Platform) -> Iterator[Finding]:
    """106: each operator has an element type that is listed for it."""
    every = frozenset().union(*(row[platform.table] or frozenset() for row in operators().values()))
    floats = SETS["float_only"] | (SETS["float_only_11"] if platform.version >= (11,) else set())
    for node in network.every_node():
        listed = (operators().get(node.op_type) or {}).get(platform.table)
        if listed is None or node.domain not in STANDARD or node.op_type in SETS["any_type"]:
            continue
        name = node.output[0] if node.op_type in SETS["by_output"] or not node.input else node.input[0]
        kind = network.types.get(name, TensorProto.UNDEFINED)
        known = type_name(kind)
        short = _SHORT.get(known, "")
        if short == "i64" and platform.version < (10,):
            short = "i32"  # cast down
        if known in SETS["whole_numbers"] and node.op_type in floats:
            what = (
                f"{node.op_type} has the type {known}; the parser of {platform.name} takes only floats for it"
            )
            yield Finding(106, "error", label(node), what, "Cast to FLOAT first, and back.")
            continue
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
            unsure = platform.newer and known not in SETS["no_type"]
            yield Finding(106, "warning" if unsure else "error", label(node), what, cure)


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
