from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.nets import Concatenated, Flattened, ResidualCnn
from torch import Tensor, nn
from torch.nn import functional as F

from deadweight.export.onnx_graph.graph import OnnxModel
from deadweight.export.onnx_graph.resize import Resizable
from deadweight.export.onnx_graph.run import runner
from deadweight.export.onnx_graph.segments import segments
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.pruning.groups import choose
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.targets.errors import ModelError


class Attention(nn.Module):
    """Heads and their features are two groups whose product is a width; a shape in the graph follows too."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.softmax(q @ k.transpose(-1, -2), -1) @ v
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


IMAGE = {"image": torch.randn(2, 3, 8, 8)}
NETS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor]]] = {
    "residual": (ResidualCnn, IMAGE),
    "concatenated": (Concatenated, {"image": torch.randn(2, 2, 6, 6)}),
    "flattened": (Flattened, {"image": torch.randn(2, 1, 8, 8)}),
    "attention": (Attention, {"tokens": torch.randn(2, 5, 16)}),
}
SLOW = ("concatenated", "attention")


class Exports:
    """A network's exported file at any widths, cut and exported anew."""

    def __init__(self, name: str, folder: Path) -> None:
        build, self.example = NETS[name]
        torch.manual_seed(0)
        self.model, self.path = build().eval(), folder / "model.onnx"
        self.groups = trace(self.model, self.example)
        self.dense = {group.name: group.size for group in self.groups}
        self.scores = {name: torch.arange(size, 0, -1.0) for name, size in self.dense.items()}

    def __call__(self, widths: Mapping[str, int]) -> onnx.ModelProto:
        small = apply(self.model, choose(self.groups, self.scores, keep=widths), self.groups)
        to_onnx(small, self.example, self.path)
        return onnx.load(self.path)

    def drawn(self, seed: int) -> dict[str, int]:
        rng = np.random.default_rng(seed)
        return {name: int(rng.integers(1, size + 1)) for name, size in self.dense.items()}

    def learnt(self) -> Resizable:
        least = {name: max(1, size // 2) for name, size in self.dense.items()}
        return Resizable.learnt(self, self.dense, least=least, checks=[self.drawn(1), self.drawn(2)])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NETS],
)
def test_a_resized_file_has_the_sizes_of_the_exported_one_and_runs(name: str, tmp_path: Path) -> None:
    exports = Exports(name, tmp_path)
    resizable = exports.learnt()
    feeds = {key: value.numpy() for key, value in exports.example.items()}
    made, true = resizable.at(exports.drawn(3)), exports(exports.drawn(3))
    shapes = [{one.name: list(one.dims) for one in model.graph.initializer} for model in (made, true)]
    assert shapes[0] == shapes[1]
    outputs, expected = runner(made)(feeds), runner(true)(feeds)
    for key, value in expected.items():
        assert outputs[key].shape == value.shape


def test_the_whole_widths_give_the_whole_file(tmp_path: Path) -> None:
    exports = Exports("residual", tmp_path)
    feeds = {key: value.numpy() for key, value in exports.example.items()}
    made = runner(exports.learnt().at(exports.dense))(feeds)
    for key, value in runner(exports(exports.dense))(feeds).items():
        assert np.array_equal(made[key], value)


def test_a_network_that_is_exported_with_other_operators_at_other_widths_is_refused(tmp_path: Path) -> None:
    exports = Exports("residual", tmp_path)

    def two_kinds(widths: Mapping[str, int]) -> onnx.ModelProto:
        model = exports(widths)
        if widths == exports.dense:
            model.graph.node[1].op_type = "Sigmoid"
        return model

    least = {name: max(1, size // 2) for name, size in exports.dense.items()}
    with pytest.raises(ModelError, match="exported with other operators"):
        Resizable.learnt(two_kinds, exports.dense, least=least, checks=[exports.drawn(1)])


@pytest.mark.parametrize("name", NETS)
def test_the_segments_one_after_the_other_compute_what_the_network_computes(
    name: str, tmp_path: Path
) -> None:
    exports = Exports(name, tmp_path)
    model = exports(exports.dense)
    values = {key: value.numpy()[:1] for key, value in exports.example.items()}
    whole = runner(model)(values)
    parts = segments(OnnxModel(model, tmp_path))
    waiting = list(parts)
    while waiting:  # a segment may read one that begins after it
        part = next(p for p in waiting if all(value.name in values for value in p.model.graph.input))
        values |= runner(part.model)({value.name: values[value.name] for value in part.model.graph.input})
        waiting.remove(part)
    for key, value in whole.items():
        assert np.allclose(values[key], value, atol=1e-5)
    assert len(parts) >= 2
