"""A workload whose loss is lost at its fourth step; in a file that a new process can import."""

from __future__ import annotations

from collections.abc import Mapping

from small import Digits
from torch import Tensor


class Diverging(Digits):
    calls = 0

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        self.calls += 1
        return super().loss(outputs, batch) * (float("nan") if self.calls == 4 else 1.0)
