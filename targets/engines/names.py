"""The mapping from the name of an engine's layer to its ONNX nodes and PyTorch modules.

From 8.6 on TensorRT lists the nodes in `Metadata`: "[ONNX Layer: conv1]", one for each node, separated by a
control character. Older engines and layers without metadata have only their name, which concatenates nodes:
"conv1.weight + QuantizeLinear_7 + Conv_9", "PWN(Sigmoid_1, Mul_2)", "Conv_3 + Relu_4 || Conv_5",
"Reformatting CopyNode for Input Tensor 0 to Conv_3", "{ForeignNode[Conv_0...Add_9]}" (which names two ends of
a region, nothing in between).
"""

from __future__ import annotations

import re
from typing import Dict, List, Tuple

from ..onnx_file import Nodes

_METADATA = re.compile(r"\[ONNX Layer: (.*?)\](?=\s*(?:[\x1e\x1f]|\[ONNX Layer: |$))", re.DOTALL)
_COPY = re.compile(r"^Reformatting CopyNode for (?:Input|Output) Tensor \d+ (?:to|from) ")
_MADE_UP = re.compile(
    r"\(Unnamed Layer\*? ?\d+\)|^(?:copied_)?(?:un)?squeeze_|^unsqueeze_node_after_|^__myl_|^$"
)
_PARAMETER = re.compile(r"^(.*?)\.(?:weight|bias|running_mean|running_var|parametrizations\..*)$")


def nodes_of(name: str, metadata: str = "") -> Tuple[str, ...]:
    """The ONNX nodes of a layer, each once, in order; () where neither name nor metadata has any."""
    listed = _METADATA.findall(metadata or "")
    if listed:
        return tuple(dict.fromkeys(node.strip() for node in listed if node.strip()))
    parts = dict.fromkeys(_parts(name))
    return tuple(part for part in parts if not _MADE_UP.search(part) and not _PARAMETER.match(part))


def served_by(name: str) -> str:
    """The layer that a copy serves, after "to" or "from" in its name; "" if the layer is not a copy."""
    match = _COPY.match(name)
    return name[match.end() :] if match else ""


def modules_of(name: str, nodes: Tuple[str, ...]) -> Tuple[str, ...]:
    """The PyTorch modules of a layer, from the weights in its name or the paths of its nodes.

    torch.onnx writes a path for a node, "/layer1/layer1.0/conv1/Conv", where each step is a module's full
    name or is appended to the previous one. Nodes named "Conv_3" or "node_conv2d_1" have no module.
    """
    modules: List[str] = []
    for part in _parts(name):
        parameter = _PARAMETER.match(part)
        if parameter and not _MADE_UP.search(part):
            modules.append(parameter.group(1).strip("/"))
    for node in nodes:
        steps = [step for step in node.strip("/").split("/") if step]
        if len(steps) < 2:
            continue
        module = ""
        for step in steps[:-1]:
            whole = not module or step == module or step.startswith(module + ".")
            module = step if whole else f"{module}.{step}"
        modules.append(module)
    return tuple(dict.fromkeys(modules))


def modules_in(nodes: Nodes) -> Dict[str, str]:
    """The PyTorch module of every ONNX node that reads a weight, from the weight's name."""
    modules: Dict[str, str] = {}
    for node in nodes.nodes:
        for name in node.inputs:
            parameter = _PARAMETER.match(name)
            if parameter:
                modules.setdefault(node.name, parameter.group(1))
    return modules


def _parts(name: str) -> List[str]:
    rest = served_by(name) or name
    region = re.match(r"^\{ForeignNode\[(.*)\]\}$", rest)
    if region:
        return [part.strip() for part in region.group(1).split("...") if part.strip()]
    between = r" \|\| | \+ "
    if "PWN(" in rest:  # fused pointwise nodes, perhaps nested
        rest, between = rest.replace("PWN(", ""), between + "|, "
    parts = [part.strip() for part in re.split(between, rest)]
    return [part[: len(part) - max(part.count(")") - part.count("("), 0)] for part in parts]
