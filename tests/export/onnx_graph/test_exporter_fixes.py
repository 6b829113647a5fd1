"""Networks that torch's own exporter refuses, exported and equal in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.int8_files import compare_module
from torch import Tensor, nn

from deadweight.export.to_onnx import to_onnx


class Windows(nn.Module):
    """Attention inside windows: queries, keys and values have five axes."""

    def __init__(self, mask: str) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)
        self.mask = mask
        self.register_buffer("hidden", torch.ones(5, 5).tril().bool())
        self.bias = nn.Parameter(torch.randn(2, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        b, w, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, w, t, 3, 2, 4).permute(3, 0, 1, 4, 2, 5).unbind(0)
        mask = {"none": None, "float": self.bias, "bool": self.get_buffer("hidden")}[self.mask]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
        out: Tensor = self.out(y.transpose(2, 3).reshape(b, w, t, 8))
        return out


class Biased(nn.Module):
    """Attention with a bias: the exporter lowers it to another layout in memory than the one traced."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)
        self.bias = nn.Parameter(torch.randn(2, 5, 5))

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        out: Tensor = self.out(y.transpose(1, 2).contiguous().reshape(b, t, -1))
        return out


def check(model: nn.Module, example: dict[str, Tensor], path: Path) -> None:
    to_onnx(model.eval(), example, path)
    batches = [{name: value.numpy() for name, value in example.items()}]
    assert compare_module(model, path, batches).samples == 2  # it raises where outputs differ


@pytest.mark.parametrize("mask", ["none", "float", "bool"])
def test_attention_in_windows_is_spelled_out(mask: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(Windows(mask), {"x": torch.randn(2, 3, 5, 8)}, tmp_path / "windows.onnx")


def test_a_view_of_attention_is_legal_whatever_the_layout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    check(Biased(), {"x": torch.randn(2, 5, 8)}, tmp_path / "biased.onnx")
