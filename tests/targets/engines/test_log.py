from __future__ import annotations

import pytest

from deadweight.targets.engines.log import read_log

# As real logs have it: TensorRT 8 lists layers, TensorRT 10 counts them.
EIGHT = (
    "(Sparsity) Layers eligible for sparse math: Conv_0, Conv_2 + Relu_3, Gemm_725",
    "(Sparsity) TRT inference plan picked sparse implementation for layers: Conv_2 + Relu_3",
)
TEN = (
    "(Sparsity) Found 39 layer(s) eligible to use sparse tactics: node_conv2d, node_linear",
    "(Sparsity) Chose 2 layer(s) using sparse tactics: node_conv2d, node_linear",
)


@pytest.mark.parametrize(("lines", "counts"), [(EIGHT, (3, 1)), (TEN, (39, 2))])
def test_the_log_tells_which_layers_are_two_of_four_and_how_many_make_use_of_it(
    lines: tuple[str, ...], counts: tuple[int, int]
) -> None:
    found = read_log([("info", line) for line in lines])
    assert (found.sparse_layers, found.sparse_kernels) == counts


def test_an_empty_list_is_no_layer_and_no_line_is_not_known() -> None:
    found = read_log([("info", "(Sparsity) TRT inference plan picked sparse implementation for layers:")])
    assert (found.sparse_layers, found.sparse_kernels) == (None, 0)
    assert read_log([("info", "Layers eligible for sparse math: a")]).sparse_layers is None
