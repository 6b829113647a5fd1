"""The restrictions of single supported operators: the checks of rule 105.

Sources: the restrictions in onnx-tensorrt's operator tables, and the checks of its parsers, release branches
8.4-GA to 10.1-GA; what later versions learnt is in changes.csv. Where the table forbids what the parser
accepts (pools over one axis, cubic Resize) the parser counts. An attribute that an old parser ignores
although it changes the result is a fault. What 11 no longer refuses was tested with the parser and builder
of TensorRT-RTX 1.7, of that time; for the versions between it and the newest source it is a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from onnx import NodeProto

from ..onnx_graph.graph import attribute_of
from .network import Network
from .platform import SETS, Platform


class Fault(NamedTuple):
    """A fault of a node, and the cure; `unsure` where a source says otherwise, or a newer parser takes it."""

    what: str
    cure: str
    unsure: bool = False


Check = Callable[[Network, NodeProto, Platform], Iterator[Fault]]

LARGEST_K = 3840


def _from_data(network: Network, name: str) -> bool:
    """Whether a tensor depends on an input's values, not only on its shape."""
    waiting, seen = [name], set[str]()
    while waiting:
        name = waiting.pop()
        maker = network.index.producer.get(name)
        if maker is None and name and name not in network.index.constants:
            return True
        if maker is not None and maker.op_type not in ("Shape", "Size") and name not in seen:
            waiting += maker.input
        seen.add(name)
    return False


def _axes(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    # NVIDIA lists dynamic axes as new in 10.7; by TensorRT-RTX 1.7.1 they must still be known at build time.
    if (
        len(node.input) > 1
        and platform.has(node.op_type, "computed axes")
        and _from_data(network, node.input[1])
    ):
        yield Fault("its axes depend on an input's values", "Make them constant.")
    yield from _constant(1, "axes")(network, node, platform)


def _constant(place: int, name: str, *, since: int = 8) -> Check:
    def check(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
        given = len(node.input) > place and bool(node.input[place])
        free = platform.version[0] < since or platform.has(node.op_type, f"computed {name}")
        if given and not free and network.constant(node, place) is None:
            yield Fault(
                f"its {name} are computed; the parser needs constants",
                "Make them constant: fix the shapes and fold constants.",
            )

    return check


def _pool(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    kernel = attribute_of(node, "kernel_shape", [])
    if len(kernel) > 3:
        yield Fault(f"it pools over {len(kernel)} axes, the maximum is 3", "Pool in two steps.")
    if any(step != 1 for step in attribute_of(node, "dilations", [])):
        does = "are refused" if platform.version >= (10,) else "are ignored, so the result is wrong"
        yield Fault(f"dilations {does}", "Pool without dilations.")
    if node.op_type == "LpPool" and attribute_of(node, "p", 2) not in (1, 2):
        yield Fault(f"its p is {attribute_of(node, 'p')}, only 1 and 2 are supported", "Use 1 or 2.")
    if node.op_type == "MaxPool" and len(node.output) > 1 and node.output[1]:
        yield Fault("its second output, the indices, is not computed", "Drop the indices (MaxUnpool, too).")


def _norm(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    if node.op_type == "BatchNormalization" and attribute_of(node, "training_mode", 0):
        yield Fault("it is in training mode", "Call model.eval() before the export.")
    if node.op_type == "LpNormalization" and attribute_of(node, "p", 2) not in (1, 2):
        yield Fault(f"its p is {attribute_of(node, 'p')}, only 1 and 2 are supported", "Use 1 or 2.")
    if node.op_type == "LayerNormalization" and any(node.output[1:]):
        yield Fault("only its first output is computed", "Compute mean and deviation separately, if needed.")
    computed = any(network.constant(node, place) is None for place in (1, 2))
    if node.op_type == "InstanceNormalization" and platform.version < (8, 6) and computed:
        yield Fault("its scale or bias is computed", "Make them constants.")


def _dropout(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    if len(node.input) > 2 and node.input[2]:
        training = network.constant(node, 2)
        if training is None or bool(training):
            yield Fault("its training mode is not the constant false", "Call model.eval() before the export.")


def _constant_kind(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    for attribute in node.attribute:
        if attribute.name in ("sparse_value", "value_string", "value_strings"):
            yield Fault(f"it has a {attribute.name}", "Store it as a dense constant of numbers.")


def _einsum(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    equation = attribute_of(node, "equation", b"").decode().replace(" ", "")
    operands = equation.split("->")[0].split(",")
    unsure = platform.version >= (10,)  # the parser of 10.1 has no such check; the CHANGELOG says 10.12

    def fault(feature: str, what: str, cure: str) -> Iterator[Fault]:
        if not platform.has("Einsum", feature):
            yield Fault(f"{what}; NVIDIA lists {feature} as new in 10.12", cure, unsure)

    if "." in equation and not unsure:  # from 10.0 on the parser expands it
        yield from fault("ellipses", f"the ellipsis in {equation!r} is not supported", "Name every axis.")
    sizes: dict[str, set[int | None]] = {}
    for operand, name in zip(operands, node.input, strict=False):
        for letter, size in zip(operand, network.shapes.get(name, ()), strict=False):
            sizes.setdefault(letter, set()).add(size)
    stretched = [letter for letter, found in sizes.items() if 1 in found and len(found) > 1]
    if stretched and "." not in equation:
        what = f"the axis {stretched[0]!r} of {equation!r} is broadcast"
        yield from fault("broadcasts", what, "Expand that axis first.")
    if any(len(set(named)) < len(named) for named in (operand.replace(".", "") for operand in operands)):
        what = f"the diagonal in {equation!r} is not supported"
        yield from fault("diagonals", what, "Extract the diagonal with Gather first.")
    if any(letter not in "abcdefghijklmnopqrstuvwxyz.,->" for letter in equation):
        yield Fault(f"{equation!r} names axes by other than lower-case letters", "Use the letters a to z.")


def _eye(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    if None in network.shapes.get(node.input[0], ()):
        yield Fault("the size of its input is not fixed", "Fix that axis, or store the matrix as a constant.")


def _grid(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    axes = len(network.shapes.get(node.input[0], (0,) * 4))
    if axes != 4 and platform.version < (11,):
        cure = "Sample image by image: [N, C, H, W]."
        yield Fault(f"its input has {axes} axes, only 4 are supported", cure, platform.newer)
    places = len(network.shapes.get(node.input[1], (0,) * axes))
    if places != axes and platform.version >= (11,):
        yield Fault(f"its input has {axes} axes and its grid {places}", "Give both the same number of axes.")


def _recurrent(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    if attribute_of(node, "direction", b"forward") == b"bidirectional":
        for name in ("activations", "activation_alpha", "activation_beta"):
            said = list(attribute_of(node, name, []))
            if said[: len(said) // 2] != said[len(said) // 2 :]:
                yield Fault(f"its {name} differ between forward and reverse", "Use the same in both.")
    if node.op_type == "LSTM" and attribute_of(node, "input_forget", 0):
        yield Fault("coupled input and forget gates are not supported", "Train it with separate gates.")
    if attribute_of(node, "layout", 0):
        cure = "Use layout 0 (sequence first) and transpose around it."
        yield Fault("its layout puts the batch first", cure, platform.newer)


def _hardmax(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    shape = network.shapes.get(node.input[0])
    axis = attribute_of(node, "axis", -1)
    if shape and -len(shape) <= axis < len(shape) and shape[axis] is None:
        yield Fault("the length of its axis is not fixed", "Fix that axis.", platform.newer)


def _branches(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    branches = (attribute_of(node, name).output for name in ("then_branch", "else_branch"))
    for one, other in zip(*branches, strict=False):
        if one.name == other.name:
            cure = "Give them different names."
            yield Fault(f"both branches have an output {one.name!r}", cure, platform.newer)
        ranks = [
            len(v.type.tensor_type.shape.dim) for v in (one, other) if v.type.tensor_type.HasField("shape")
        ]
        if len(set(ranks)) > 1:
            what = f"its branches give {ranks[0]} and {ranks[1]} axes"
            yield Fault(what, "Give both the same shape.", platform.newer)


def _loop(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    body = attribute_of(node, "body")
    carried = len(node.input) - 2
    # Every version's parser gets the condition inside from the tensor outside.
    if len(node.input) > 1 and not node.input[1] and len(body.input) > 1:
        inside = body.input[1].name
        if any(inside in inner.input for inner in body.node):
            fault = f"its condition is missing, but its body reads it as {inside!r}"
            yield Fault(fault, "Give the constant true as its condition.")
    if platform.version >= (10,) and len(node.output) > carried and network.constant(node, 0) is None:
        fault = "it collects an output over a computed number of iterations"
        yield Fault(fault, "Fix the number of iterations.")
    for before, after in zip(body.input[2:], body.output[1:], strict=False):
        shapes = [
            [axis.dim_value or axis.dim_param for axis in value.type.tensor_type.shape.dim]
            for value in (before, after)
            if value.type.tensor_type.HasField("shape")
        ]
        if platform.version >= (10,) and len(shapes) == 2 and shapes[0] != shapes[1]:
            fault = f"{before.name!r} changes its shape between iterations"
            yield Fault(fault, "Keep a fixed shape; fill it in parts.")


def _resize(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    mode = attribute_of(node, "coordinate_transformation_mode", b"half_pixel").decode()
    supported = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")
    if network.opset >= 11 and mode not in supported:
        yield Fault(f"its coordinates are {mode!r}", f"Use one of {', '.join(supported)}.")
    nearest = attribute_of(node, "nearest_mode", b"round_prefer_floor")
    if mode == "tf_half_pixel_for_nn" and nearest != b"round_prefer_floor":
        yield Fault(f"{mode} needs round_prefer_floor", "Use half_pixel.")
    if attribute_of(node, "antialias", 0):
        yield Fault("it requests antialiasing", "Resize without it, or blur first with a convolution.")
    policy = attribute_of(node, "keep_aspect_ratio_policy", b"stretch")
    if policy != b"stretch":
        yield Fault(f"its aspect ratio policy is {policy.decode()!r}", "Compute the sizes, and use stretch.")
    if platform.version < (10,) and attribute_of(node, "axes", []):
        yield Fault("its attribute axes is ignored", "Give scales or sizes of all axes (opset 17).")


def _scatter(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    reduction = attribute_of(node, "reduction")
    if node.op_type == "ScatterElements" and platform.version >= (10,):
        return  # a plugin
    if platform.version >= (10,) and reduction is not None and not platform.has("ScatterND", "opset 18"):
        yield Fault("the attribute reduction is refused, with any value", "Remove it.")
    elif reduction not in (None, b"none"):
        does = "refused" if platform.version >= (10,) else "ignored, so the result is wrong"
        yield Fault(f"its reduction {reduction.decode()!r} is {does}", "Add outside.")


def _group_norm(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    if network.opset >= 21 and not platform.has("GroupNormalization", "opset 21"):
        fault = "since opset 21 its scale and bias are by channel; NVIDIA lists that as new in 10.9"
        yield Fault(fault, "Export at opset 20 or lower.")


def _reduction(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    given = len(node.input) > 1 and bool(node.input[1])
    if platform.version < (10,) and given and node.op_type not in ("ReduceSum", "ReduceLogSum"):
        fault = "its axes are an input, which is ignored: it reduces over all axes, so the result is wrong"
        yield Fault(fault, "Export at opset 17, in which they are an attribute.")
    else:
        yield from _constant(1, "axes")(network, node, platform)


def _pad(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    if platform.version < (10,) and len(node.input) > 3 and node.input[3]:
        yield Fault("its axes are refused", "Give the padding of all axes (opset 17).")
    else:
        yield from _constant(3, "axes")(network, node, platform)


def _top(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    count = network.constant(node, 1)
    if count is None and platform.version < (8, 6):
        yield Fault("its K is computed; the parser needs a constant", "Make K a constant.")
    first = int(count.reshape(-1)[0]) if count is not None and count.size else 0
    if first > LARGEST_K:
        yield Fault(f"its K is {first}, the maximum is {LARGEST_K}", "Compute the top in parts.")
    if (10,) <= platform.version < (11,) and not attribute_of(node, "sorted", 1):
        yield Fault("it requests an unsorted result", "Request a sorted one.", platform.newer)


def _reverse(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    if platform.version < (8, 6) and None in network.shapes.get(node.input[0], ()):
        yield Fault("its input has a dynamic axis", "Fix the shapes, including the batch.")


def _deform(network: Network, node: NodeProto, platform: Platform) -> Iterator[Fault]:
    pads = list(attribute_of(node, "pads", []))
    if len(pads) > 4:
        yield Fault(f"it works on {len(pads) // 2} axes, the maximum is 2", "Use a plain convolution there.")
    if pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
        yield Fault(f"its pads {pads} differ between begin and end", "Pad with Pad before it.")


RESTRICTIONS: dict[str, Check] = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pool),
    **dict.fromkeys(
        ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "LpNormalization"), _norm
    ),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), _recurrent),
    "Constant": _constant_kind,
    "CumSum": _constant(1, "axis"),
    "DeformConv": _deform,
    "Dropout": _dropout,
    "Einsum": _einsum,
    "EyeLike": _eye,
    "GridSample": _grid,
    "GroupNormalization": _group_norm,
    "Hardmax": _hardmax,
    "If": _branches,
    "Loop": _loop,
    "OneHot": _constant(1, "depth", since=10),
    "Pad": _pad,
    "Resize": _resize,
    "ReverseSequence": _reverse,
    **dict.fromkeys(("ScatterElements", "ScatterND"), _scatter),
    "Slice": _constant(3, "axes"),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _axes),
    **dict.fromkeys(SETS["reductions"], _reduction),
    "TopK": _top,
}
