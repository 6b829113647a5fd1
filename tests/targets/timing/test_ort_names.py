"""Names of kernels, and the layers that they are of."""

from __future__ import annotations

from deadweight.targets.onnx_file import Node, Nodes
from deadweight.targets.timing.ort_layers import labels_of, owners_of


def test_kernels_are_named_after_nodes_after_tensors_or_after_neither() -> None:
    graph = Nodes(
        (
            Node("conv/Conv", "Conv", ("x", "w"), ("c",)),
            Node("relu/Relu", "Relu", ("c",), ("r",)),
            Node("fc/Gemm", "Gemm", ("r", "v"), ("g",)),
        ),
        {"w": (8, 8, 3, 3), "v": (10, 8)},
    )
    kernels = [
        ("ReorderInput_kernel_time", "ReorderInput"),
        ("r_nchwc_kernel_time", "Conv"),
        ("ReorderOutput_token_4_kernel_time", "ReorderOutput"),
        ("r_quantize_kernel_time", "QuantizeLinear"),
        ("fused fc/Gemm_kernel_time", "FusedGemm"),
    ]
    found = owners_of(kernels, graph)
    assert [found[name][0].name for name, _ in kernels] == ["conv/Conv"] * 3 + ["fc/Gemm"] * 2
    assert [found[name][1] for name, _ in kernels] == [True, False, True, True, False]


def test_the_weighted_node_of_a_module_has_the_modules_name() -> None:
    nodes = [Node(f"block/{op}", op, (), ()) for op in ("Relu", "Conv", "Add")] + [
        Node("relu/Relu", "Relu", (), ())
    ]
    assert labels_of(nodes) == {
        "block/Relu": "block/Relu",
        "block/Conv": "block",
        "block/Add": "block/Add",
        "relu/Relu": "relu",
    }
