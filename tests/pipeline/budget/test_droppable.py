from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from support.block_nets import Asking, Encoder, Stages
from torch import nn

from deadweight.export.onnx_graph.run import runner
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.budget.droppable import dropped_in, widths_in, with_blocks, without_blocks
from deadweight.pipeline.budget.grids import Layout, Network
from deadweight.pipeline.budget.resized import of_module, unlike
from deadweight.pipeline.budget.timer import Conditions
from deadweight.pipeline.pruning.plan import Bypass
from deadweight.pipeline.pruning.trace import trace
from deadweight.targets.errors import ModelError

CONDITIONS = Conditions("onnxruntime", "1", "", 1, "a CPU", "", (), "measured")


def of(
    model: nn.Module, example: dict[str, torch.Tensor], place: Path, *, groups: int = 0
) -> tuple[Network, dict[str, Bypass], list[str]]:
    """The network with blocks, and with its first groups at two widths."""
    to_onnx(model, example, place / "dense.onnx")
    dense = onnx.load(place / "dense.onnx")
    network = Network(lambda widths: dense, {}, {})
    if groups:
        traced = trace(model, example)
        levels = {one.name: (one.size // 2, one.size) for one in [*traced][:groups]}
        network = of_module(model, traced, levels, example, seed=0)
    return with_blocks(network, model, example)


@pytest.mark.parametrize(
    ("build", "shape", "every"),
    [
        pytest.param(
            *(Stages, (2, 3, 8, 8), ["layer1.0", "layer1.1", "layer2.0", "layer2.1"]), marks=pytest.mark.slow
        ),
        (Encoder, (2, 5, 4), ["layers.0", "layers.1", "layers.2"]),
    ],
)
def test_a_file_without_blocks_computes_what_the_network_without_them_does(
    build: type[nn.Module], shape: tuple[int, ...], every: list[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = unlike(build()).eval()
    name = "tokens" if build is Encoder else "image"
    example = {name: torch.randn(shape)}
    network, bypasses, why = of(model, example, tmp_path)
    assert (list(bypasses), why) == (every, [])
    for gone in ([every[1]], every[:2], [every[0], every[2]], every):
        widths = {**network.dense, **{f"{path} (block)": 0 for path in gone}}
        assert dropped_in(widths) == gone
        assert not {*widths_in(widths)} & {f"{path} (block)" for path in every}
        small = without_blocks(model, {path: bypasses[path] for path in gone}, example)
        run = runner(network.file_at(widths))
        (found,) = run({name: example[name].numpy()}).values()
        assert np.allclose(found, small(example[name]).detach().numpy(), atol=1e-5)


@pytest.mark.slow
def test_a_file_of_narrower_groups_without_blocks_is_valid_and_its_segments_are_gone(tmp_path: Path) -> None:
    model, example = unlike(Stages()).eval(), {"image": torch.randn(2, 3, 8, 8)}
    network, _, _ = of(model, example, tmp_path, groups=3)
    narrow = {name: own[0] for name, own in network.levels.items()}
    onnx.checker.check_model(network.file_at(narrow), full_check=True)
    layout = Layout.of(network)
    layout.make(lambda done, total, what: None)
    table = layout.table(CONDITIONS, {})
    inside = next(one for one in table.segments if one.name == "layer1.1.conv1/Conv")
    place = inside.groups.index("layer1.1 (block)")
    for widths, key in inside.keys.items():
        assert bool(key) == (widths.split("/")[place] == "1")
    telling = table.telling({**network.dense, "layer1.1 (block)": 0})
    assert "layer1.1.conv1" not in telling
    assert {"layer1.0.conv1", "layer1.1 (block)", "stem"} <= {*telling}


def test_a_block_of_which_more_than_the_output_is_used_stays_and_without_any_there_is_none_to_choose(
    tmp_path: Path,
) -> None:
    model, example = Asking().eval(), {"image": torch.randn(2, 3, 8, 8)}
    _, bypasses, why = of(model, example, tmp_path)
    assert list(bypasses) == ["second"]
    assert any("first" in one for one in why)
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with pytest.raises(ModelError, match="no block"):
        of(plain, {"x": torch.randn(2, 8)}, tmp_path)
