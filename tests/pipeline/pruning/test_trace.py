"""What belongs together is found, and what cannot be removed is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support import nets
from support.halving import done, half_of, halved
from torch import Tensor, nn

from deadweight.pipeline.pruning.graphnet import GraphNet
from deadweight.pipeline.pruning.groups import Groups
from deadweight.pipeline.pruning.surgery import apply, replay
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import verify
from deadweight.targets.errors import ModelError


def members(groups: Groups, name: str) -> dict[tuple[str, int], str]:
    return {(piece.parameter, piece.axis): piece.role for piece in groups[name].slices}


def test_a_neuron_of_an_mlp_is_its_row_its_bias_and_the_next_layers_column() -> None:
    groups = trace(nets.Mlp(), {"image": nets.image(2, 1, 4, 4)})
    assert [(group.name, group.size, group.kind) for group in groups] == [
        ("fc1", 12, "linear"),
        ("fc2", 8, "linear"),
    ]
    assert members(groups, "fc1") == {
        ("fc1.weight", 0): "producer",
        ("fc1.bias", 0): "affine",
        ("fc2.weight", 1): "consumer",
    }


def test_statistics_are_read_after_the_activation() -> None:
    groups = trace(nets.Mlp(), {"image": nets.image(2, 1, 4, 4)})
    graph = {node.name: node for node in groups.graph.graph.nodes}
    (read,) = groups["fc2"].reads
    assert graph[read.node].target == torch.ops.aten.relu.default
    assert read.units.tolist() == [list(range(8))]


def test_the_outputs_stay_and_the_reason_is_given() -> None:
    groups = trace(nets.Mlp(), {"image": nets.image(2, 1, 4, 4)})
    assert [(one.parameter, one.axis, one.reason) for one in groups.frozen] == [
        ("fc3.weight", 0, "it is an output of the network")
    ]


def test_a_residual_sum_ties_the_channels_of_both_branches() -> None:
    groups = trace(nets.ResidualCnn(), (nets.image(2, 3, 8, 8),))
    assert [(group.name, group.size) for group in groups] == [("stem", 8), ("conv1", 16), ("conv2", 16)]
    tied = members(groups, "conv2")
    assert tied["conv2.weight", 0] == tied["short.weight", 0] == "producer"
    assert tied["norm2.running_var", 0] == "affine"
    assert ("fc.weight", 1) in tied


def test_a_channel_owns_all_its_pixels_after_a_flatten() -> None:
    groups = trace(nets.Flattened(), (nets.image(2, 1, 8, 8),))
    (columns,) = [piece for piece in groups["conv2"].slices if piece.parameter == "fc1.weight"]
    assert columns.units.tolist() == [channel for channel in range(8) for _ in range(16)]


def test_a_depthwise_convolution_follows_its_input() -> None:
    groups = trace(nets.Separable(), (nets.image(2, 3, 6, 6),))
    assert groups["expand"].kinds == ("conv", "depthwise")
    assert {"depthwise.weight", "norm.weight", "excite.weight", "project.weight"} <= {
        piece.parameter for piece in groups["expand"].slices
    }


def test_each_branch_of_a_concat_has_its_own_columns() -> None:
    groups = trace(nets.Concatenated(), (nets.image(2, 2, 6, 6),))
    assert [group.name for group in groups] == ["a", "b", "c"]
    (columns,) = [piece for piece in groups["b"].slices if piece.parameter == "c.weight"]
    assert columns.units.tolist() == [-1] * 6 + [0, 1, 2, 3]


def test_the_batch_stays_open_and_node_names_are_the_same_every_time() -> None:
    first, second = (trace(nets.ResidualCnn(), (nets.image(2, 3, 8, 8),)) for _ in range(2))
    assert first.batch is None
    assert [node.name for node in first.graph.graph.nodes] == [node.name for node in second.graph.graph.nodes]
    (output,) = first.graph(nets.image(5, 3, 8, 8))
    assert output.shape == (5, 5)


def test_a_call_can_be_inserted_after_a_read() -> None:
    model = nets.lively(nets.Mlp())
    groups = trace(model, (nets.image(2, 1, 4, 4),))
    seen: list[Tensor] = []

    def look(value: Tensor) -> None:
        seen.append(value)

    graph = groups.graph.graph
    node = next(node for node in graph.nodes if node.name == groups["fc1"].reads[0].node)
    with graph.inserting_after(node):
        graph.call_function(look, (node,))
    groups.graph.recompile()
    groups.graph(nets.image(7, 1, 4, 4))
    assert seen[0].shape == (7, 12)
    assert (seen[0] >= 0).all()


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = nets.ResidualCnn().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trace(model, (nets.image(2, 3, 8, 8),))
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_operator_without_a_rule_freezes_what_goes_in() -> None:
    class Cumulative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.fc3(self.fc2(self.fc1(x).cummax(1).values))
            return out

    groups = trace(Cumulative(), (torch.randn(2, 4),))
    assert [group.name for group in groups] == ["fc2"]
    frozen = next(one for one in groups.frozen if one.parameter == "fc1.weight")
    assert frozen.operator == "cummax"
    assert "self.fc1(x).cummax(1)" in frozen.line


def test_control_flow_that_depends_on_data_is_refused_with_its_line() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                x = self.fc(x)
            return x

    with pytest.raises(ModelError, match=r"(?s)different data.*test_trace.py.*if x.sum\(\) > 0"):
        trace(Fickle(), (torch.randn(2, 4),))


def test_a_size_that_depends_on_data_is_refused_with_its_line() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            out: Tensor = y[y[:, 0] > 0]
            return out

    with pytest.raises(ModelError, match=r"(?s)depends on the data.*y\[y\[:, 0\] > 0\]"):
        trace(Sparse(), (torch.randn(2, 4),))


def test_inputs_that_do_not_fit_are_refused_with_the_line() -> None:
    with pytest.raises(ModelError, match=r"nets.py.*self.fc1"):
        trace(nets.Mlp(), (torch.randn(2, 1, 5, 5),))


def test_inputs_on_another_device_are_refused() -> None:
    with pytest.raises(ModelError, match="different devices: cpu, meta"):
        trace(nets.Mlp(), (torch.randn(2, 1, 4, 4, device="meta"),))


class Sharing(nn.Module):
    """Two layers, whose weights a test lays into memory as it likes."""

    def __init__(self, lay: Callable[[Any], None]) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 8), nn.Linear(8, 6)
        lay(self)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(torch.relu(self.encoder(x)))
        return out


def transposed(model: Any) -> None:
    model.decoder.weight = nn.Parameter(model.encoder.weight.data.t())


def overlapping(model: Any) -> None:
    memory = torch.randn(70)
    model.encoder.weight = nn.Parameter(memory[:48].view(8, 6))
    model.decoder.weight = nn.Parameter(memory[20:68].view(6, 8))


def seen_by_a_buffer(model: Any) -> None:
    model.register_buffer("first", model.encoder.weight.data[:2])


def wrapped_twice(model: Any) -> None:
    model.decoder = nn.Linear(6, 8)
    model.decoder.weight = nn.Parameter(model.encoder.weight)
    model.forward = lambda x: model.encoder(x) + model.decoder(x)


@pytest.mark.parametrize("lay", [transposed, overlapping, seen_by_a_buffer, wrapped_twice])
def test_parameters_that_share_memory_without_being_one_are_refused(lay: Callable[[Any], None]) -> None:
    other = "first" if lay is seen_by_a_buffer else r"decoder\.weight"
    with pytest.raises(
        ModelError, match=rf'(?s)"encoder\.weight" and "{other}" share memory.*same nn\.Parameter'
    ):
        trace(Sharing(lay), (nets.image(2, 6),))


def side_by_side(model: Any) -> None:
    memory = torch.randn(96)
    model.encoder.weight = nn.Parameter(memory[:48].view(8, 6))
    model.decoder.weight = nn.Parameter(memory[48:].view(6, 8))


def columns_of_one(model: Any) -> None:
    memory = torch.randn(8, 12)
    model.encoder.weight = nn.Parameter(memory[:, :6])
    model.decoder.weight = nn.Parameter(memory[:, 6:].t())


def constants(model: Any) -> None:
    table = torch.randn(8)
    model.register_buffer("table", table)
    model.register_buffer("lower", table[:4])
    model.register_buffer("wide", torch.ones(1).expand(8))


@pytest.mark.parametrize("lay", [side_by_side, columns_of_one, constants])
def test_what_lies_in_one_memory_without_overlapping_is_cut_as_ever(lay: Callable[[Any], None]) -> None:
    groups = trace(Sharing(lay), (nets.image(2, 6),))
    assert [(group.name, group.size) for group in groups] == [("encoder", 8)]


class OfOne(nn.Module):
    """Its hard-coded width gives the graph form; `fixed` takes only one sample, or computes another thing."""

    def __init__(self, fixed: str = "") -> None:
        super().__init__()
        self.fixed = fixed
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.fc1(x).view(-1, 8))
        if self.fixed == "size":
            y = y.view(1, 8)
        elif self.fixed == "path" and len(x) == 1:
            y = y * 2
        out: Tensor = self.fc2(y)
        return out


def test_an_example_of_one_sample_leaves_the_batch_open() -> None:
    model, example = nets.lively(OfOne()), {"x": nets.image(1, 4)}
    groups = trace(model, example)
    assert groups.batch is None
    small = apply(model, half_of(groups), groups, form="graph")
    assert isinstance(small, GraphNet)
    three = nets.image(3, 4)
    assert torch.allclose(small(three)[1:2], small(three[1:2]), atol=1e-6)
    again = replay(OfOne(), done(small), example)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(three), small(three))


@pytest.mark.parametrize("fixed", ["size", "path"])
def test_a_network_that_treats_one_sample_otherwise_is_traced_with_one(fixed: str) -> None:
    model, example = nets.lively(OfOne(fixed)), (nets.image(1, 4),)
    groups = trace(model, example)
    assert groups.batch == 1
    small = apply(model, half_of(groups), groups, form="graph")
    assert verify(model, small, done(small), groups).max_relative_error < 1e-5


class Unbound(nn.Module):
    """Two inputs whose batches must be one; that of the second is fixed by unbind()."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 2)
        self.other = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        parts = [self.other(one) for one in y.unbind()]
        out: Tensor = self.fc2(torch.relu(self.fc1(x))).sum(0) + torch.stack(parts).mean()
        return out


def test_a_batch_that_one_of_the_inputs_fixes_is_fixed_for_all() -> None:
    model, example = nets.lively(Unbound()), (nets.image(2, 4), nets.image(2, 4))
    groups = trace(model, example)
    assert groups.batch == 2
    small = apply(model, half_of(groups), groups)
    assert verify(model, small, done(small), groups).max_relative_error < 1e-5


class Masked(nn.Module):
    """In training, some rows are replaced by a learned one; which, torch.export cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 3)
        self.masked = nn.Parameter(torch.randn(16))
        self.never = nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x).relu()
        if self.training:
            rows = torch.tensor(np.random.default_rng(0).random(len(x)) < float(x.detach().abs().mean()))
            y = y.clone()
            y[rows] = self.masked
        out: Tensor = self.head(self.body(y).relu())
        return out


def test_a_parameter_that_only_training_reads_goes_with_what_it_replaces() -> None:
    model = nets.lively(Masked())
    small, plan, _ = halved(model, nets.image(4, 6))
    assert plan.cut["masked"] == {0: plan.removed["embed"]}
    assert [len(small.masked), len(small.never)] == [8, 7]
    small.train()(nets.image(4, 6)).sum().backward()
    assert small.masked.grad is not None
