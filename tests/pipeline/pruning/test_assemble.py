"""From identities to groups: their order, names, kinds and roles, and what is listed as frozen."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from support import nets, sequence_nets
from torch import Tensor, nn

from deadweight.pipeline.pruning.groups import Groups
from deadweight.pipeline.pruning.trace import trace

CNN = (nets.image(2, 3, 8, 8),)


class Multiplied(nn.Module):
    """A depthwise convolution that makes two channels of each; a parameter that owns its units directly."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.spread = nn.Conv2d(6, 12, 3, groups=6)
        self.fc = nn.Linear(12, 4)
        self.mix = nn.Parameter(torch.randn(4, 8))
        self.out = nn.Linear(8, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = self.fc(F.relu(self.spread(F.relu(self.stem(image)))).mean((2, 3)))
        out: Tensor = self.out(F.relu(x @ self.mix))
        return out


class Stacked(nn.Module):
    """A module whose parameters make two groups: two maps in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ParameterList([torch.randn(6, 5), torch.randn(7, 6)])
        self.out = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.maps:
            x = F.relu(F.linear(x, weight))
        out: Tensor = self.out(x)
        return out


def roles(groups: Groups, name: str) -> list[tuple[str, int, str]]:
    return [(piece.parameter, piece.axis, piece.role) for piece in groups[name].slices]


def test_groups_come_in_the_order_of_the_forward_pass() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b, self.a = nn.Linear(6, 2), nn.Linear(5, 6), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(F.relu(self.b(F.relu(self.a(x)))))
            return out

    assert [group.name for group in trace(Backwards(), (nets.image(2, 4),))] == ["a", "b"]


def test_names_are_those_of_the_first_producer_and_unique() -> None:
    groups = trace(Multiplied(), CNN)
    assert [group.name for group in groups] == ["stem", "spread:blocks", "fc", "mix"]
    layers = trace(Stacked(), (nets.image(2, 4, 5),))
    assert [(group.name, group.size) for group in layers] == [("maps", 6), ("maps#2", 7)]


def test_channels_that_a_depthwise_convolution_multiplies_are_blocks() -> None:
    groups = trace(Multiplied(), CNN)
    assert [(group.kind, group.size) for group in groups][:2] == [("conv", 6), ("blocks", 2)]
    assert groups["stem"].kinds == ("conv", "depthwise")  # alignment holds for both
    rows = {piece.parameter: piece.units.tolist() for piece in groups["spread:blocks"].slices}
    assert rows["spread.weight"] == [0, 1] * 6
    rows = {piece.parameter: piece.units.tolist() for piece in groups["stem"].slices}
    assert rows["fc.weight"] == [unit for unit in range(6) for _ in range(2)]


def test_a_residual_stream_has_the_kinds_of_all_who_write_to_it() -> None:
    groups = trace(sequence_nets.Vit(), CNN)
    assert [(group.name, group.kind) for group in groups] == [
        ("patch", "conv"),
        ("attention.qkv:heads", "heads"),
        ("attention.qkv", "attention"),
        ("mlp.0", "linear"),
    ]
    assert groups["patch"].kinds == ("conv", "linear")
    assert trace(sequence_nets.Recurrent(), (nets.image(2, 6, 5),))["lstm"].kinds == ("recurrent",)


def test_a_producer_comes_first_and_roles_are_distinguished() -> None:
    found = roles(trace(nets.ResidualCnn(), CNN), "conv1")
    assert found[0] == ("conv1.weight", 0, "producer")
    assert sorted(found[1:]) == [
        ("conv2.weight", 1, "consumer"),
        ("norm1.bias", 0, "affine"),
        ("norm1.running_mean", 0, "affine"),
        ("norm1.running_var", 0, "affine"),
        ("norm1.weight", 0, "affine"),
    ]


def test_what_both_makes_and_reads_units_is_a_producer() -> None:
    groups = trace(sequence_nets.Llama(), (torch.zeros(2, 9, dtype=torch.long),))
    assert ("embed.weight", 1, "producer") in roles(groups, "embed")  # tied to the head, which reads


def test_every_group_has_weights_that_produce_its_units() -> None:
    for model, example in (
        (nets.Grouped(), nets.image(2, 3, 6, 6)),
        (nets.Shuffled(), nets.image(2, 3, 8, 8)),
        (nets.PixelUNet(), nets.image(2, 3, 8, 8)),
        (sequence_nets.Linked(), nets.image(2, 9, 6)),
    ):
        for group in trace(model, (example,)):
            producers = [piece for piece in group.slices if piece.role == "producer"]
            assert any(model.get_parameter(piece.parameter).dim() > 1 for piece in producers), group.name


def test_every_unit_of_a_group_lives_in_each_of_its_places() -> None:
    for group in trace(nets.Detector(), CNN):
        for piece in group.slices:
            assert set(piece.units.tolist()) - {-1} == set(range(group.size)), (group.name, piece.parameter)


def test_a_unit_that_is_alone_is_no_group_but_its_layer_is_not_frozen_for_it() -> None:
    class Narrow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 1), nn.Linear(1, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(F.relu(self.b(F.relu(self.a(x)))))
            return out

    groups = trace(Narrow(), (nets.image(2, 4),))
    assert [group.name for group in groups] == ["b"]
    assert [one.parameter for one in groups.frozen] == ["c.weight"]


def test_an_axis_whose_units_cannot_part_is_listed_without_blame() -> None:
    frozen = {
        (one.parameter, one.axis): one for one in trace(nets.Grouped(), (nets.image(2, 3, 6, 6),)).frozen
    }
    assert frozen["out.weight", 0].operator == "output"
    assert (frozen["a.weight", 0].operator, frozen["a.weight", 0].reason) == (
        "",
        "all its units are coupled into one",
    )


def test_units_that_stay_are_kept_out_of_the_group_of_the_others() -> None:
    class Picked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.a(x)
            return self.b(F.relu(y)), y[:, 2]

    groups = trace(Picked(), (nets.image(2, 4),))
    (rows,) = [piece for piece in groups["a"].slices if piece.parameter == "a.weight"]
    assert rows.units.tolist() == [0, 1, -1, 2, 3, 4]
    frozen = next(one for one in groups.frozen if one.parameter == "a.weight")
    assert frozen.operator == "select"
    assert "y[:, 2]" in frozen.line


def test_a_value_that_two_groups_share_is_read_for_both() -> None:
    groups = trace(nets.Concatenated(), (nets.image(2, 2, 6, 6),))
    nodes = [
        {read.node: read.units.reshape(-1).tolist() for read in groups[name].reads} for name in ("a", "b")
    ]
    (shared,) = nodes[0].keys() & nodes[1].keys()
    assert nodes[0][shared] == [0, 1, 2, 3, 4, 5, -1, -1, -1, -1]
    assert nodes[1][shared] == [-1, -1, -1, -1, -1, -1, 0, 1, 2, 3]
