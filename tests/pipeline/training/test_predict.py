from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from support.digits import Digits
from torch import nn

from deadweight.export.opened import outputs_of
from deadweight.pipeline.training.predict import score_of, session_predict, torch_predict
from deadweight.targets.errors import ModelError
from deadweight.targets.runtimes.session import TensorSpec


def test_outputs_are_named_by_what_the_network_returns() -> None:
    one = torch.zeros(1)
    assert list(outputs_of(one)) == ["output"]
    assert list(outputs_of((one, one))) == ["output_0", "output_1"]
    assert list(outputs_of({"boxes": one})) == ["boxes"]
    with pytest.raises(ModelError, match="returned a str"):
        outputs_of("boxes")


def test_a_score_of_nan_outputs_is_refused() -> None:
    model = nn.Linear(64, 10)
    model.bias.data[0] = torch.nan
    with pytest.raises(ModelError, match="NaN or infinity"):
        score_of(Digits(), torch_predict(model, ["pixels"]), "test")


class Fours:
    """A session whose batch is fixed at 4, as an engine's can be."""

    runtime = "test"
    evidence = "simulated"
    inputs = (TensorSpec("x", (4, 2), "float32"),)
    outputs = (TensorSpec("y", (4, 2), "float32"),)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        assert inputs["x"].shape == (4, 2)
        return {"y": inputs["x"] * 2}

    def prepare(self, inputs: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def close(self) -> None: ...


@pytest.mark.parametrize("count", [1, 4, 7, 8])
def test_batches_are_split_and_padded_to_what_a_model_takes(count: int) -> None:
    x = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    assert np.array_equal(session_predict(Fours())({"x": x})["y"], 2 * x)
