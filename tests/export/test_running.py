from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from deadweight.export.running import pieces, runner
from deadweight.targets.errors import WorkloadError

Nets = Callable[[str], Any]


def test_any_tensor_inside_can_be_looked_at_and_the_model_is_left_as_it_was(net: Nets) -> None:
    model = onnx.load(net("mlp").path)
    before = model.SerializeToString()
    x = net("mlp").batches[0]["x"].numpy()
    found = runner(model, ["Relu_1", "x", "output"])({"x": x})
    assert list(found) == ["Relu_1", "x", "output"]
    assert found["Relu_1"].shape == (20, 32)
    assert (found["Relu_1"] >= 0).all()
    np.testing.assert_array_equal(found["x"], x)
    assert model.SerializeToString() == before


def test_batches_come_in_pieces_and_labels_are_left_out(net: Nets) -> None:
    model = onnx.load(net("joined").path)
    batches = [batch | {"label": torch.zeros(20)} for batch in net("joined").batches[:1]]
    made = list(pieces(model, batches, size=8))
    assert [len(piece["left"]) for piece in made] == [8, 8, 4]
    assert all(set(piece) == {"left", "right"} for piece in made)
    whole = np.concatenate([piece["right"] for piece in made])
    np.testing.assert_array_equal(whole, batches[0]["right"].numpy())


def test_inputs_of_different_lengths_are_refused(net: Nets) -> None:
    model = onnx.load(net("joined").path)
    uneven = {"left": torch.zeros(3, 1, 8, 8), "right": torch.zeros(2, 1, 8, 8)}
    with pytest.raises(WorkloadError, match="do not hold the same number of samples"):
        list(pieces(model, [uneven]))


def test_tensors_that_are_part_of_a_graph_for_gradients_are_taken(net: Nets) -> None:
    x = torch.randn(4, 64, requires_grad=True)
    (piece,) = pieces(onnx.load(net("mlp").path), [{"x": x}])
    np.testing.assert_array_equal(piece["x"], x.detach().numpy())


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((torch.zeros(4, 64), torch.zeros(4)), "A batch is a tuple"),
        (torch.zeros(4, 64), "A batch is a Tensor"),
        ({"x": torch.zeros(4, 64).bfloat16()}, "'x' of a batch cannot be made an array"),
        ({"x": [[0.0] * 64, [0.0] * 63]}, "'x' of a batch cannot be made an array"),
        ({"x": 1.0}, "do not hold the same number of samples"),
    ],
)
def test_a_batch_that_is_no_dict_of_arrays_is_refused_in_words(net: Nets, batch: Any, said: str) -> None:
    with pytest.raises(WorkloadError, match=said):
        list(pieces(onnx.load(net("mlp").path), [batch]))
