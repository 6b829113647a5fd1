"""From the name of an engine's layer back to the ONNX nodes it came from, and to the modules in PyTorch.

TensorRT says it outright from 8.6 on, in `Metadata`: "[ONNX Layer: conv1]", one for each node, parted by a
control character. Older engines and layers without metadata have only their name, which strings nodes
together: "conv1.weight + QuantizeLinear_7 + Conv_9", "PWN(Sigmoid_1, Mul_2)", "Conv_3 + Relu_4 || Conv_5",
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
    """The ONNX nodes of a layer, each once, in order; () where neither name nor metadata tells."""
    told = _METADATA.findall(metadata or "")
    if told:
        return tuple(dict.fromkeys(node.strip() for node in told if node.strip()))
    return tuple(
        part
        for part in dict.fromkeys(_parts(name))
        if not _MADE_UP.search(part) and not _PARAMETER.match(part)
    )


def served_by(name: str) -> str:
    """The layer that a copy feeds or empties: what stands behind "to"; "" when the layer is no copy."""
    found = _COPY.match(name)
    return name[found.end() :] if found else ""


def modules_of(name: str, nodes: Tuple[str, ...]) -> Tuple[str, ...]:
    """The PyTorch modules that a layer stands for, by the weights in its name or the paths of its nodes.

    torch.onnx writes a path for a node, "/layer1/layer1.0/conv1/Conv", where each step is a module's whole
    name or what is added to the one before. Nodes called "Conv_3" or "node_conv2d_1" tell no module.
    """
    found: List[str] = []
    for part in _parts(name):
        parameter = _PARAMETER.match(part)
        if parameter and not _MADE_UP.search(part):
            found.append(parameter.group(1).strip("/"))
    for node in nodes:
        steps = [step for step in node.strip("/").split("/") if step]
        if len(steps) < 2:
            continue
        module = ""
        for step in steps[:-1]:
            whole = not module or step == module or step.startswith(module + ".")
            module = step if whole else f"{module}.{step}"
        found.append(module)
    return tuple(dict.fromkeys(found))


def modules_in(nodes: Nodes) -> Dict[str, str]:
    """The PyTorch module of every ONNX node that reads a weight, by the weight's name."""
    found: Dict[str, str] = {}
    for node in nodes.nodes:
        for name in node.inputs:
            parameter = _PARAMETER.match(name)
            if parameter:
                found.setdefault(node.name, parameter.group(1))
    return found


def _parts(name: str) -> List[str]:
    """The names that a layer's name strings together."""
    rest = served_by(name) or name
    region = re.match(r"^\{ForeignNode\[(.*)\]\}$", rest)
    if region:
        return [part.strip() for part in region.group(1).split("...") if part.strip()]
    between = r" \|\| | \+ "
    if "PWN(" in rest:  # pointwise nodes that were made one, perhaps one within the other
        rest, between = rest.replace("PWN(", ""), between + "|, "
    parts = [part.strip() for part in re.split(between, rest)]
    return [part[: len(part) - max(part.count(")") - part.count("("), 0)] for part in parts]
