from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from deadweight.pipeline.stages.evaluate import SentAhead
from deadweight.pipeline.workload import Array


def test_batches_are_sent_in_groups_and_each_gets_its_own_outputs() -> None:
    calls: list[int] = []

    def run(arrays: Mapping[str, Array]) -> dict[str, Array]:
        calls.append(len(arrays["x"]))
        return {"y": 2 * arrays["x"]}

    ahead = SentAhead(run, ["x"])
    shapes = [(3, 2), (3, 2), (1, 2), (4, 5)]  # the last batch has another width, so it goes alone
    batches = [
        {"x": torch.full(shape, float(index)), "label": torch.zeros(1)} for index, shape in enumerate(shapes)
    ]
    for batch in ahead.sent(batches):
        found = ahead.predict({"x": batch["x"].numpy()})["y"]
        np.testing.assert_array_equal(found, 2 * batch["x"].numpy())
    assert calls == [7, 4]
    changed = np.ones((2, 5), np.float32)  # by the score itself
    np.testing.assert_array_equal(ahead.predict({"x": changed})["y"], 2 * changed)
    assert calls == [7, 4, 2]
