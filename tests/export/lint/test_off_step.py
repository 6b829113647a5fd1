from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deadweight.export.lint.widths import off_step
from deadweight.export.onnx_graph.graph import load
from deadweight.export.to_onnx import to_onnx
from deadweight.targets.target import load_target


class Net(nn.Module):
    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3)
        self.expand = nn.Conv2d(width, wide, 1)
        self.depthwise = nn.Conv2d(wide, wide, 3, groups=wide)
        self.head = nn.Linear(wide, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.expand(torch.relu(self.first(x))))))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


ALL = ("first/Conv", "expand/Conv", "depthwise/Conv", "head/Gemm")


@pytest.mark.parametrize(
    ("width", "wide", "named"),
    [
        (16, 32, ()),
        (20, 32, ()),
        (18, 32, ("first/Conv (18, step 4)", "expand/Conv (18 to 32, step 4)")),
        (16, 40, ("depthwise/Conv (40, step 16)",)),
    ],
)
def test_widths_off_the_steps_of_int8_kernels_are_named(
    tmp_path: Path, width: int, wide: int, named: tuple[str, ...]
) -> None:
    to_onnx(Net(width, wide).eval(), {"x": torch.zeros(2, 3, 8, 8)}, tmp_path / "m.onnx")
    result = off_step(load(tmp_path / "m.onnx"), ALL, load_target("x86-cpu"))
    assert len(result) == bool(named)
    assert all(one in result[0] for one in named)
    # A layer that stays in float has nothing to lose.
    assert off_step(load(tmp_path / "m.onnx"), ("head/Gemm",), load_target("x86-cpu")) == ()
