from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from deadweight.export.to_onnx import to_onnx
from deadweight.targets.errors import ModelError

Nets = Callable[[str], Any]
ALL = ["mlp", "residual", "depthwise", "joined", "attentive"]


def run(path: Path, inputs: dict[str, Any]) -> list[Any]:
    """The outputs of a file in ONNX Runtime as it comes."""
    return list(onnxruntime.InferenceSession(path).run(None, inputs))


@pytest.mark.parametrize("name", ALL)
def test_the_file_computes_what_the_module_does_at_any_batch_size(net: Nets, name: str) -> None:
    made = net(name)
    for size in (1, 5):
        batch = {key: value[:size] for key, value in made.batches[0].items()}
        found = run(made.path, {key: value.numpy() for key, value in batch.items()})
        with torch.no_grad():
            expected = made.module(**batch)
        tensors = expected.values() if isinstance(expected, dict) else expected
        tensors = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        for value, right in zip(found, tensors, strict=True):
            np.testing.assert_allclose(value, right.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "inputs", "outputs"),
    [
        ("mlp", ["x"], ["output"]),
        ("joined", ["left", "right"], ["output_0", "output_1"]),
        ("depthwise", ["image"], ["logits", "features"]),
    ],
)
def test_inputs_and_outputs_carry_the_names_of_the_contract(
    net: Nets, name: str, inputs: list[str], outputs: list[str]
) -> None:
    graph = onnx.load(net(name).path).graph
    assert [value.name for value in graph.input] == inputs
    assert [value.name for value in graph.output] == outputs
    for value in (*graph.input, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        assert sizes[0].dim_param == "batch"
        assert all(size.dim_value > 0 for size in sizes[1:])


@pytest.mark.parametrize("name", ALL)
def test_the_oldest_parser_can_read_the_file(net: Nets, name: str) -> None:
    model = onnx.load(net(name).path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version <= 9
    onnx.checker.check_model(model, full_check=True)


def test_nothing_in_the_file_tells_where_it_was_made(net: Nets) -> None:
    data = net("residual").path.read_bytes()
    for word in (b"/home", b"/work", b"torch", b".py", b"forward"):
        assert word not in data


def test_layers_are_named_after_their_modules(net: Nets) -> None:
    names = [node.name for node in onnx.load(net("residual").path).graph.node]
    assert {"stem/Conv", "same.conv1/Conv", "wider.shortcut/Conv", "wider/Add", "fc/Gemm"} <= set(names)
    assert len(set(names)) == len(names)


def test_batch_norms_are_folded_and_constants_are_gone(net: Nets) -> None:
    for name in ("residual", "depthwise", "joined"):
        kinds = {node.op_type for node in onnx.load(net(name).path).graph.node}
        assert "BatchNormalization" not in kinds
        assert "Constant" not in kinds


def test_a_global_mean_becomes_a_pool(net: Nets) -> None:
    for name in ("residual", "depthwise"):
        kinds = [node.op_type for node in onnx.load(net(name).path).graph.node]
        assert "GlobalAveragePool" in kinds
        assert "ReduceMean" not in kinds


def test_a_graph_module_gives_the_same_bytes_as_the_module_it_was_traced_from(
    net: Nets, tmp_path: Path
) -> None:
    made = net("residual")
    batch = torch.export.Dim("batch")
    for inputs, names in (((), made.example), (tuple(made.example.values()), None)):
        program = torch.export.export(
            made.module, inputs, names, dynamic_shapes={"image": {0: batch}}, strict=False
        )
        to_onnx(program.module(), made.example, tmp_path / "graph.onnx")
        assert (tmp_path / "graph.onnx").read_bytes() == made.path.read_bytes()


def test_every_part_is_in_the_mode_it_was_in(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    module.train()
    module[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    to_onnx(module, {"x": torch.randn(2, 4)}, tmp_path / "a.onnx")
    assert [part.training for part in module.modules()] == [True, True, False, True, True]
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert "Dropout" not in {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}


@pytest.mark.parametrize("opset", [18, 20])
def test_newer_opsets_are_written_where_asked_for(net: Nets, tmp_path: Path, opset: int) -> None:
    made = net("residual")
    to_onnx(made.module, made.example, tmp_path / "new.onnx", opset=opset)
    model = onnx.load(tmp_path / "new.onnx")
    assert model.opset_import[0].version == opset
    inputs = {key: value.numpy() for key, value in made.example.items()}
    old = run(made.path, inputs)
    new = run(tmp_path / "new.onnx", inputs)
    np.testing.assert_allclose(old[0], new[0], rtol=1e-5, atol=1e-6)


def test_a_simplifier_that_changes_the_outputs_is_not_used(
    net: Nets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: onnx.ModelProto, **_: object) -> tuple[onnx.ModelProto, bool]:
        wrong = onnx.ModelProto.FromString(model.SerializeToString())
        for tensor in wrong.graph.initializer:
            if tensor.name == "fc3.bias":
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(10, np.float32), tensor.name))
        return wrong, True

    made = net("mlp")
    monkeypatch.setattr("onnxsim.simplify", broken)
    record = to_onnx(made.module, made.example, tmp_path / "simple.onnx")
    assert record.simplified_by == "onnxslim"
    assert "it changed output by" in record.notes[0]
    monkeypatch.setattr("onnxslim.slim", lambda model: None)
    record = to_onnx(made.module, made.example, tmp_path / "plain.onnx")
    assert record.simplified_by == "nothing"
    assert "it returned nothing" in record.notes[1]
    to_onnx(made.module, made.example, tmp_path / "asked.onnx", simplify=False)
    assert (tmp_path / "plain.onnx").read_bytes() == (tmp_path / "asked.onnx").read_bytes()


@dataclasses.dataclass
class Answer:
    logits: Tensor
    count: int
    loss: Tensor | None = None


class AnyArguments(nn.Linear):
    def forward(self, *args: Tensor, **_: object) -> Any:
        return Answer(super().forward(args[0]), 3)


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel])
def test_a_wrapped_network_is_written_with_the_tensors_of_its_dataclass(wrap: Any, tmp_path: Path) -> None:
    x = torch.randn(1, 4)  # one sample: the batch is open nevertheless
    net = AnyArguments(4, 3)
    to_onnx(wrap(net), {"x": x}, tmp_path / "a.onnx", simplify=False)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    assert [one.name for one in session.get_outputs()] == ["logits"]
    found: Any = session.run(None, {"x": torch.cat([x, x, x]).numpy()})[0]
    np.testing.assert_allclose(found[2:], net(x).logits.detach().numpy(), rtol=1e-5)
    assert "forward" not in vars(net)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_an_lstm_with_a_projection_is_written_step_by_step(tmp_path: Path) -> None:
    net, x = nn.LSTM(4, 6, batch_first=True, proj_size=3), torch.randn(2, 3, 4)

    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            first: Tensor = self.net(x)[0]
            return first

    to_onnx(First(), {"x": x}, tmp_path / "a.onnx", simplify=False)
    found = run(tmp_path / "a.onnx", {"x": x.numpy()})[0]
    np.testing.assert_allclose(found, net(x)[0].detach().numpy(), atol=1e-5)


class KeepsItsGrid(nn.Module):
    """Makes a grid for a shape once, as detection heads do."""

    shape: Any = None
    grid = torch.empty(0)

    def forward(self, image: Tensor) -> Tensor:
        if self.shape != image.shape:
            self.grid, self.shape = torch.arange(image.shape[-1]).float(), image.shape
        return image * self.grid


def test_what_a_layer_stores_while_it_is_exported_does_not_stay_in_it(tmp_path: Path) -> None:
    module, image = nn.Sequential(nn.Conv2d(3, 4, 1), KeepsItsGrid()).eval(), torch.randn(2, 3, 4, 4)
    to_onnx(module, {"input": image}, tmp_path / "m.onnx")
    assert "grid" not in vars(module[1])
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    found = session.run(None, {"input": image.numpy()})[0]
    np.testing.assert_allclose(np.asarray(found), module(image).detach().numpy(), atol=1e-5)


class Untranslated(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return torch.linalg.svdvals(x[:, None])


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, -1) * 2.0


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0 if x.sum() > 0 else x


class Nested(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x * 2.0, [x + 1.0, {"boxes": (x - 1.0,), "count": 3}]


def test_nested_outputs_are_named_by_the_collections_around_them(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    to_onnx(Nested(), {"x": x}, tmp_path / "a.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    names = [one.name for one in session.get_outputs()]
    found = dict(zip(names, session.run(None, {"x": x.numpy()}), strict=True))
    assert [*found] == ["output_0", "output_1_0", "output_1_1_boxes_0"]
    for value, right in zip(found.values(), (x * 2, x + 1, x - 1), strict=True):
        np.testing.assert_allclose(np.asarray(value), right, rtol=1e-6)


class Alike(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"a": {"b": x * 2.0}, "a_b": x + 1.0}


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (FixedBatch(), "has a fixed batch size"),
        (Branching(), "cannot be traced"),
        (Alike(), "Two outputs of the network would be called 'a_b'"),
        (Untranslated(), r"no translation of aten\._linalg_svd\."),
        (nn.Linear(3, 3), "cannot be traced"),
    ],
)
def test_a_network_that_cannot_be_exported_is_an_error_with_a_cure(
    module: nn.Module, said: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=said) as caught:
        to_onnx(module, {"x": torch.randn(2, 4)}, tmp_path / "a.onnx")
    assert caught.value.cure
    assert list(tmp_path.iterdir()) == []


def test_an_opset_that_is_too_old_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Opset 12"):
        to_onnx(nn.Linear(3, 3), {"x": torch.randn(2, 3)}, tmp_path / "a.onnx", opset=12)


SCRIPT = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("error")
sys.path.insert(0, sys.argv[1])
import conftest
from deadweight.export.to_onnx import to_onnx
to_onnx(conftest.build(sys.argv[2]), conftest.inputs(sys.argv[2], 2, 0), Path(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_two_processes_write_equal_bytes_and_say_nothing(net: Nets, tmp_path: Path, name: str) -> None:
    hashes = {hashlib.sha256(net(name).path.read_bytes()).hexdigest()}
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.onnx"
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), name, str(path)],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == ""
        assert done.stderr == ""
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_torchs_table_of_operators_is_made_once_for_all_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
    made: list[int] = []
    make = registry.from_torchlib

    def counted(*, opset_version: int) -> Any:
        made.append(opset_version)
        return make(opset_version=opset_version)

    monkeypatch.setattr(registry, "from_torchlib", counted)
    for name in ("a", "b"):
        to_onnx(nn.Linear(4, 2), {"x": torch.ones(2, 4)}, tmp_path / f"{name}.onnx")
    assert made == [18]
    assert registry.from_torchlib is counted


def test_a_plain_export_holds_equal_layers_once(tmp_path: Path) -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(48, 48), nn.Linear(48, 48)
            self.second.load_state_dict(self.first.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            made: Tensor = self.second(torch.relu(self.first(x)))
            return made

    for simplify in (False, True):
        to_onnx(Twins(), {"x": torch.rand(2, 48)}, tmp_path / "twins.onnx", simplify=simplify)
        shapes = [list(tensor.dims) for tensor in onnx.load(tmp_path / "twins.onnx").graph.initializer]
        assert sorted(shapes) == [[48], [48, 48]]


class Remembering(nn.Module):
    """Keeps what it made for the last shape, batch included, as detection heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.shape: Any = None
        self.places: Any = None

    def forward(self, x: Tensor) -> Tensor:
        if self.shape != x.shape:
            self.places = torch.arange(x.shape[3] - 2.0).expand(x.shape[0], 4, -1)[:, :, None]
            self.shape = x.shape
        made: Tensor = self.conv(x) + self.places
        return made


def test_a_cache_for_a_shape_that_an_earlier_pass_filled_fixes_no_batch(tmp_path: Path) -> None:
    model, x = Remembering().eval(), torch.randn(2, 3, 6, 8)
    model(x)
    places = model.places
    to_onnx(model, {"x": x}, tmp_path / "own.onnx")
    assert model.places is places
    five = torch.randn(5, 3, 6, 8)
    (found,) = run(tmp_path / "own.onnx", {"x": five.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(five).numpy(), rtol=1e-5, atol=1e-5)
