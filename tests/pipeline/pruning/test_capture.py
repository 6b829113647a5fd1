"""A network becomes a graph, with its lines, its batch open; or it is said why not, and not a word more."""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import nets, sequence_nets
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_unflatten

from deadweight.pipeline.pruning.capture import argument_of, batch_is_open, capture, operator_name, users_line
from deadweight.pipeline.pruning.contexts import in_mode, uncollected
from deadweight.targets.errors import ModelError


class Small(nn.Module):
    """Two layers and a step in between, which a test decides on."""

    def __init__(self, step: Callable[[Tensor], Tensor] = F.relu) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 6), nn.Linear(6, 3)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self.step(self.fc1(x)))
        return out


def refused(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


def leaves(graph: GraphModule, *inputs: Tensor) -> list[Tensor]:
    """What the graph returns, flat."""
    return list(GraphModule(graph, graph.graph)(*inputs))


def nodes(graph: GraphModule, name: str) -> list[Node]:
    return [node for node in graph.graph.nodes if operator_name(node) == name]


def test_the_graph_takes_and_returns_flat_tensors_and_knows_their_structure() -> None:
    model = nets.lively(nets.Detector())
    graph = capture(model, {"image": nets.image(2, 3, 8, 8)})
    flat = leaves(graph, nets.image(5, 3, 8, 8))
    assert [leaf.shape[0] for leaf in flat] == [5, 5]
    found, expected = tree_unflatten(flat, graph.meta["structure"]), model(nets.image(5, 3, 8, 8))
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in found)


def test_parameters_have_the_users_names() -> None:
    graph = capture(nets.ResidualCnn(), (nets.image(2, 3, 8, 8),))
    names = {str(node.target) for node in graph.graph.nodes if node.op == "get_attr"}
    assert {"stem.weight", "norm1.running_var", "short.bias", "fc.weight"} <= names


def test_a_parameter_that_forward_takes_from_a_list_has_its_name_too() -> None:
    model = Small()
    weights = [model.fc1.weight]
    model.step = lambda x: x * weights[0].sum(1)
    (node,) = nodes(capture(model, (nets.image(2, 4),)), "sum")
    (source,) = node.all_input_nodes
    assert source.target == "fc1.weight"


@pytest.mark.parametrize(
    ("example", "expected"),
    [((2,), True), ((5,), True), ((1,), False)],
    ids=["two", "five", "one"],
)
def test_the_batch_is_open_where_the_example_shows_one(example: tuple[int], expected: bool) -> None:
    graph = capture(Small(), (nets.image(*example, 4),))
    assert batch_is_open(graph) == expected
    assert leaves(graph, nets.image(7 if expected else 1, 4))[0].shape[1] == 3


def test_the_batch_is_fixed_where_the_code_writes_it_down() -> None:
    assert not batch_is_open(capture(Small(lambda x: x.reshape(2, 6)), (nets.image(2, 4),)))


def test_the_batch_is_fixed_where_inputs_do_not_share_one() -> None:
    class Pair(Small):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            assert y is not None
            return super().forward(x) + y.sum(0)

    assert not batch_is_open(capture(Pair(), (nets.image(2, 4), nets.image(5, 3))))
    assert batch_is_open(capture(Pair(), (nets.image(2, 4), nets.image(2, 3))))


def test_an_operator_names_the_users_line_and_not_torchs() -> None:
    graph = capture(nets.Mlp(), (nets.image(2, 1, 4, 4),))
    first, second, _ = nodes(graph, "linear")
    assert users_line(first).endswith("hidden = self.drop(F.relu(self.fc1(image.flatten(1))))")
    assert "nets.py:" in users_line(first)
    assert users_line(second).endswith("out: Tensor = self.fc3(self.relu(self.fc2(hidden)))")
    assert users_line(graph.graph.find_nodes(op="placeholder")[0]) == ""
    graph = capture(sequence_nets.Vit(), (nets.image(2, 3, 8, 8),))  # a module of the user's in another
    (node,) = nodes(graph, "softmax")
    assert users_line(node).endswith("weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)")


def test_the_two_modes_are_two_graphs() -> None:
    example = (nets.image(2, 3, 8, 8),)
    for training in (False, True):
        graph = capture(nets.ResidualCnn(), example, training=training)
        assert {argument_of(node, "training") for node in nodes(graph, "batch_norm")} == {training}
        graph = capture(sequence_nets.Encoder(), (nets.image(2, 7, 6),), training=training)
        assert {argument_of(node, "train") for node in nodes(graph, "dropout")} == {training}


def test_a_branch_on_data_is_refused_with_its_line_and_the_cure_and_not_a_word_more(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    where = r"different path for different data at .*test_capture.py:\d+: return x \* 2"
    with pytest.raises(ModelError, match=rf"(?s){where}.*torch\.where"):
        capture(Small(refused), (nets.image(2, 4),))
    assert capfd.readouterr() == ("", "")
    assert [one.message for one in caplog.records if one.levelno >= logging.WARNING] == []


class Force(Small):
    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(super().forward(x).sum(), x)[0]


class Own(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return self


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (Force(), nets.image(2, 4), r"computes a gradient \(torch.autograd.grad\)"),
        (Own(), nets.image(2, 4), r"returns a .*\.Own, which"),
        (Small(), nets.image(2, 4)[:0], r"is empty: its shape is \(0, 4\)"),
    ],
    ids=["a gradient", "an object", "no sample"],
)
def test_what_has_no_graph_is_refused_in_plain_words(model: nn.Module, example: Tensor, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        capture(model, (example,))


def test_logs_are_as_loud_after_a_capture_as_before() -> None:
    before = logging.root.manager.disable
    logging.disable(logging.DEBUG)
    try:
        with pytest.raises(ModelError):
            capture(Small(refused), (nets.image(2, 4),))
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(before)


def test_inputs_that_do_not_fit_are_refused_with_the_line_where_they_fail(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(
        ModelError, match=r"(?s)does not run on its example.*self\.fc1\(x\).*model\(\*inputs\)"
    ):
        capture(Small(), (nets.image(2, 5),))
    with pytest.raises(ModelError, match="does not run on its example inputs"):
        capture(Small(), (nets.image(2, 4), nets.image(2, 4)))
    with pytest.raises(ModelError, match="no example inputs"):
        capture(Small(), ())
    assert capfd.readouterr() == ("", "")


def test_one_parameter_on_another_device_is_refused() -> None:
    model = Small()
    model.fc2.bias = nn.Parameter(torch.zeros(3, device=torch.device("meta")))
    with pytest.raises(ModelError, match=r"(?s)different devices: cpu, meta.*model\.to\(device\)"):
        capture(model, (nets.image(2, 4),))


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_is_back_in_its_mode_also_when_capture_fails(fails: bool) -> None:
    model: Any = nets.ResidualCnn().train()
    model.norm1.eval()
    before = [module.training for module in model.modules()]
    for training in (True, False):
        if fails:
            with pytest.raises(ModelError):
                capture(model, (nets.image(2, 4, 8, 8),), training=training)
        else:
            capture(model, (nets.image(2, 3, 8, 8),), training=training)
        assert [module.training for module in model.modules()] == before


def test_what_forward_notes_on_its_module_is_as_it_was_before() -> None:
    class Noting(Small):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen = super().forward(x)
            return self.seen

    model = Noting()
    capture(model, (nets.image(2, 4),))
    assert model.calls == 0
    assert not hasattr(model, "seen")
    with in_mode(model, training=False):
        model(nets.image(2, 4))
    assert not hasattr(model, "seen")


def test_statistics_of_norms_stay_when_the_training_form_is_captured() -> None:
    model = nets.lively(nets.ResidualCnn())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    capture(model, (nets.image(2, 3, 8, 8),), training=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_warnings_of_the_users_code_do_not_stop_the_capture() -> None:
    def warned(x: Tensor) -> Tensor:
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        return x

    assert nodes(capture(Small(warned), (nets.image(2, 4),)), "linear")


def test_arguments_are_found_by_place_by_name_and_by_default() -> None:
    def pooled(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool1d(x[:, None], 2, stride=1, padding=1)[:, 0, :6]

    (node,) = nodes(capture(Small(pooled), (nets.image(2, 4),)), "avg_pool1d")
    assert [argument_of(node, name) for name in ("kernel_size", "stride", "padding")] == [[2], [1], [1]]
    assert argument_of(node, "ceil_mode") is False


@pytest.mark.parametrize("on", [True, False])
def test_the_exporter_collects_garbage_in_between_where_that_was_on(on: bool) -> None:
    seen: list[bool] = []

    def step(x: Tensor) -> Tensor:
        seen.append(gc.isenabled())
        return x

    (gc.enable if on else gc.disable)()
    try:
        with uncollected():
            capture(Small(step), (torch.randn(2, 4),))
            assert not gc.isenabled()
        assert gc.isenabled() == on
    finally:
        gc.enable()
    assert set(seen) == {on}


class AnyNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(8, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, image: Tensor, *others: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.first(image) + self.second(others[0])))
        return scores


def test_a_forward_that_takes_any_number_of_tensors_keeps_the_batch_open() -> None:
    graph = capture(AnyNumber().eval(), (torch.randn(2, 8), torch.randn(2, 8)))
    assert batch_is_open(graph)
    (scores,) = leaves(graph, torch.randn(5, 8), torch.randn(5, 8))
    assert scores.shape == (5, 4)


def test_one_tensor_alone_must_be_put_into_a_tuple() -> None:
    image: Any = nets.image(2, 3, 8, 8)
    with pytest.raises(ModelError, match=r"one tensor of shape \(2, 3, 8, 8\)") as caught:
        capture(nets.ResidualCnn(), image)
    assert "(x,)" in caught.value.cure


class Padded(nn.Module):
    """A decoder with a mask, a packed sequence, or a cast in forward."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
        self.stack = nn.TransformerDecoder(self.decoder, 1)
        self.steps, self.head = nn.LSTM(8, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "mask":
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            x = self.stack(x, x, tgt_mask=mask)
        elif self.way == "packed":
            lengths = x[:, 0, 0].long().clamp(2, 5)
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            x, _ = nn.utils.rnn.pad_packed_sequence(self.steps(packed)[0], batch_first=True)
        else:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                x = self.head(x)
            return x.float()
        out: Tensor = self.head(x)
        return out


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("mask", r"whether it is causal at .*test_capture.*tgt_is_causal=True"),
        ("packed", r"packed sequence depend on the data at .*test_capture.*mask what is behind"),
        ("cast", r"enables autocast; it begins at .*test_capture.py:\d+: x = self.head\(x\)"),
    ],
)
def test_what_torch_cannot_capture_is_refused_with_its_line_and_a_cure_of_its_own(
    way: str, words: str
) -> None:
    with pytest.raises(ModelError, match=f"(?s){words}"):
        capture(Padded(way).eval(), (nets.image(2, 5, 8),))


def test_a_script_and_a_lazy_layer_are_refused_with_the_cure() -> None:
    lazy = nn.Sequential(nn.LazyLinear(8), nn.ReLU())
    with pytest.raises(ModelError, match=r"(?s)lazy layer.*uninitialized parameter.*Run model"):
        capture(lazy, (nets.image(2, 4),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        scripted: Any = torch.jit.trace(Small(), nets.image(2, 4))  # type: ignore[no-untyped-call]
    with pytest.raises(ModelError, match=r"(?s)TorchScript.*Python module"):
        capture(scripted, (nets.image(2, 4),))


class PaddedWindows(nn.Module):
    """Windows of seven, padded anew at each stage: each size nests the remainders of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            h, w = x.shape[-2:]
            x = F.pad(x, (0, (7 - w % 7) % 7, 0, (7 - h % 7) % 7))
            n, m = x.shape[2] // 7, x.shape[3] // 7
            windows = x.view(-1, 3, n, 7, m, 7).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 7, 7)
            x = (
                self.mix(windows)
                .view(-1, n, m, 3, 7, 7)
                .permute(0, 3, 1, 4, 2, 5)
                .reshape(-1, 3, n * 7, m * 7)
            )
            x = x[:, :, :h, :w]
            x = F.pad(x, (0, w % 2, 0, h % 2))[:, :, ::2, ::2]
        return x


@pytest.mark.slow
def test_open_axes_whose_sizes_become_long_expressions_are_refused_before_they_take_minutes() -> None:
    example = {"x": torch.randn(2, 3, 112, 112)}
    with pytest.raises(ModelError, match="expressions of dozens of operations"):
        capture(PaddedWindows().eval(), example, every=True)
    assert batch_is_open(capture(PaddedWindows().eval(), example))
