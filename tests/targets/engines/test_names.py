"""Names as TensorRT 8 to 11 write them, and what they stand for."""

from __future__ import annotations

import pytest

from deadweight.targets.engines.content import modules_in, modules_of, nodes_of, served_by
from deadweight.targets.onnx_file import Node, Nodes


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("Conv_3 + Relu_4", ("Conv_3", "Relu_4")),
        ("conv1.weight + QuantizeLinear_7 + Conv_9", ("QuantizeLinear_7", "Conv_9")),
        ("PWN(Sigmoid_1, Mul_2)", ("Sigmoid_1", "Mul_2")),
        ("PWN(PWN(Sigmoid_1), Mul_2)", ("Sigmoid_1", "Mul_2")),
        ("Conv_1 + PWN(Sigmoid_2, Mul_3)", ("Conv_1", "Sigmoid_2", "Mul_3")),
        ("Conv_3 + Relu_4 || Conv_0 + Relu_1", ("Conv_3", "Relu_4", "Conv_0", "Relu_1")),
        ("Reformatting CopyNode for Input Tensor 0 to Conv_5 + Add_6", ("Conv_5", "Add_6")),
        ("{ForeignNode[/a/Conv.../b/Add]}", ("/a/Conv", "/b/Add")),
        ("(Unnamed Layer* 12) [ElementWise]", ()),
        (
            "fc.weight + Gemm_2 + fc.bias + (Unnamed Layer* 306) [Shuffle] + unsqueeze_node_after_fc.bias",
            ("Gemm_2",),
        ),
        ("__myl_MoveSoftmax_0x1", ()),
    ],
)
def test_a_layers_name_gives_its_nodes(name: str, nodes: tuple[str, ...]) -> None:
    assert nodes_of(name) == nodes


def test_metadata_speaks_before_the_name() -> None:
    text = "[ONNX Layer: /conv1/Conv]\x1e[ONNX Layer: /relu/Relu]\x1e[ONNX Layer: /conv1/Conv]"
    assert nodes_of("__myl_0x1", text) == ("/conv1/Conv", "/relu/Relu")
    assert nodes_of("x", "[ONNX Layer: a[0]] [ONNX Layer: b]") == ("a[0]", "b")


def test_a_copy_serves_the_layer_behind_its_to() -> None:
    assert served_by("Reformatting CopyNode for Output Tensor 1 to MaxPool_12") == "MaxPool_12"
    assert served_by("MaxPool_12") == ""


def test_modules_come_from_weights_or_from_paths() -> None:
    assert modules_of("layer1.0.conv1.weight + QuantizeLinear_20 + Conv_22", ("Conv_22",)) == (
        "layer1.0.conv1",
    )
    assert modules_of("x", ("/layer1/layer1.0/conv1/Conv", "/layer1/layer1.0/Add")) == (
        "layer1.0.conv1",
        "layer1.0",
    )
    assert modules_of("x", ("/features/features.3/Conv",)) == ("features.3",)
    assert modules_of("node_conv2d_1", ("node_conv2d_1", "Conv_3")) == ()


def test_modules_come_from_the_onnx_files_weights_too() -> None:
    nodes = (Node("node_conv2d", "Conv", ("x", "stem.conv.weight", "stem.conv.bias"), ("y",)),)
    assert modules_in(Nodes((*nodes, Node("relu", "Relu", ("y",), ("z",))), {})) == {
        "node_conv2d": "stem.conv"
    }
