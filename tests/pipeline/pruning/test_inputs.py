"""Networks are called as they are: by position or by name, nested, with outputs of their own class."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from support import nets
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from deadweight import apply, choose, load_pruned, save_pruned, trace, verify
from deadweight.export.opened import tensors_of
from deadweight.pipeline.pruning.capture import batch_is_open, capture
from deadweight.pipeline.pruning.inputs import UNKNOWN, Inputs, axes_of, inputs_of, tried
from deadweight.targets.errors import ModelError


class Two(nn.Module):
    """Two layers, of which a test's `forward` makes what it needs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 12), nn.Linear(12, 3)

    def two(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.relu(self.a(x)))
        return out


class EmptyRest(Two):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.two(x)


class OnlyRest(Two):
    def forward(self, *args: Tensor, **kwargs: Any) -> Tensor:
        return self.two(args[0])


class GivenRest(Two):
    def forward(self, x: Tensor, **kwargs: Tensor) -> Tensor:
        return self.two(x) * kwargs["gain"]


class KeywordOnly(Two):
    def forward(self, *, x: Tensor) -> Tensor:
        return self.two(x)


class Skipped(Two):
    def forward(self, x: Tensor, shift: Tensor | None = None, gain: Tensor | None = None) -> Tensor:
        assert shift is None
        assert gain is not None
        return self.two(x) * gain


class Listed(Two):
    def forward(self, xs: list[Tensor], more: dict[str, Any] | None = None) -> list[Tensor]:
        assert more is not None
        return [self.two(x + more["shift"][0]) for x in xs]


@dataclass
class Result:
    scores: Tensor
    inner: Any = None


class Dataclasses(Two):
    def forward(self, x: Tensor) -> Result:
        return Result(self.two(x), {"hidden": [Result(self.two(-x))]})


def x(batch: int = 2) -> Tensor:
    return nets.image(batch, 4)


CALLS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "*args and **kwargs that are empty": (EmptyRest, (x(),)),
    "the same by name": (EmptyRest, {"x": x()}),
    "only *args": (OnlyRest, {"features": x()}),
    "**kwargs that are given": (GivenRest, {"x": x(), "gain": nets.image(2, 3)}),
    "by name alone": (KeywordOnly, {"x": x()}),
    "a gap": (Skipped, {"x": x(), "gain": nets.image(2, 3)}),
    "lists and dicts": (Listed, ([x(), x()], {"shift": (x(),)})),
    "lists and dicts by name": (Listed, {"xs": [x()], "more": {"shift": [x()]}}),
    "a dataclass": (Dataclasses, (x(),)),
}


@pytest.mark.parametrize(("build", "example"), CALLS.values(), ids=CALLS)
def test_a_network_is_halved_verified_saved_and_loaded_however_it_is_called(
    build: Callable[[], nn.Module], example: Any, tmp_path: Path
) -> None:
    model = build().eval()
    groups = trace(model, example)
    assert [group.size for group in groups] == [12]
    assert groups.batch is None
    plan = choose(groups, {"a": torch.arange(12.0)}, ratio=0.5)
    small = apply(model, plan, groups)
    assert type(small) is type(model)
    assert verify(model, small, plan, groups).max_relative_error < 1e-6
    save_pruned(tmp_path, small, plan, example)
    loaded = load_pruned(build, tmp_path).eval()
    args, named = inputs_of(model, example)
    found, expected = tensors_of(loaded(*args, **named)), tensors_of(small(*args, **named))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    with torch.no_grad():
        nn.init.zeros_(model.get_parameter("b.weight")[:, :6])  # the units that left
        wide = tensors_of(model(*args, **named))
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(wide, expected, strict=True))


def test_the_graph_of_nested_inputs_takes_their_tensors_in_order_at_any_batch() -> None:
    graph = capture(Listed(), ([x(), x()], {"shift": (x(),)}))
    names = [str(node.target) for node in graph.graph.nodes if node.op == "placeholder"]
    assert names == ["xs_0", "xs_1", "more_0"]
    assert batch_is_open(graph)


def test_a_dataclass_comes_back_from_the_tensors_of_a_graph() -> None:
    model = Dataclasses()
    graph = capture(model, (x(),))
    found = tree_unflatten([torch.zeros(1), torch.ones(1), None], graph.meta["structure"])
    assert found == Result(torch.zeros(1), {"hidden": [Result(torch.ones(1), None)]})


def test_an_example_is_bound_by_forwards_parameters() -> None:
    one, other = x(), x()
    assert inputs_of(Skipped(), {"x": one, "gain": other}) == Inputs((one,), {"gain": other})
    assert inputs_of(Skipped(), {"image": one, "mask": other}) == Inputs((one, other), {})
    assert inputs_of(GivenRest(), {"x": one, "gain": other}) == Inputs((one,), {"gain": other})


@pytest.mark.parametrize(
    ("example", "words"),
    [
        (x(), r"one tensor of shape \(2, 4\)"),
        (Result(x()), "one Result, not a collection"),
        ({"gain": x(), "x": x()}, r"(?s)inputs are gain, x; forward takes x, shift, gain.*in the order"),
        ({"gain": x()}, "missing a required argument: 'x'"),
        ((x(),) * 4, r"forward\(x, shift, gain\): too many positional arguments"),
    ],
    ids=["a tensor", "an object", "another order", "one is missing", "too many"],
)
def test_an_example_that_does_not_fit_is_refused(example: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        inputs_of(Skipped(), example)


class Takes(Two):
    def forward(self, one: Result) -> Tensor:
        return self.two(one.scores)


def test_an_example_in_a_dataclass_is_saved_by_its_name_and_read_where_that_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class Local(Result):
        pass

    model = Takes().eval()
    groups = trace(model, (Result(x(), "note"),))
    plan = choose(groups, {"a": torch.arange(12.0)}, ratio=0.5)
    small = apply(model, plan, groups)
    with pytest.raises(ModelError, match=r"cannot be written without code: no dataclass .*Local is loaded"):
        save_pruned(tmp_path, small, plan, (Local(x()),))
    save_pruned(tmp_path, small, plan, (Result(x(), "note"),))
    with monkeypatch.context() as gone:
        gone.delattr(sys.modules[__name__], "Result")
        with pytest.raises(ModelError, match=r"(?s)no dataclass Result is loaded in .*Import the module"):
            load_pruned(Takes, tmp_path)
    assert torch.equal(load_pruned(Takes, tmp_path)(Result(x())), small(Result(x())))


def test_axes_that_change_together_have_one_name() -> None:
    ids, mask = torch.zeros(2, 12, dtype=torch.long), torch.zeros(2, 12)
    assert axes_of([ids, mask]) == {"batch": [(0, 0), (1, 0)], "sequence length": [(0, 1), (1, 1)]}
    assert list(axes_of([torch.zeros(2, 3, 8, 8)])) == ["batch", "height", "width"]
    assert list(axes_of([torch.zeros(2, 9, 5), torch.tensor(1.0)])) == [
        "batch",
        "length of axis 1",
        "length of axis 2",
    ]


def test_all_axes_are_changed_at_once_and_one_by_one_where_that_is_refused() -> None:
    seen: list[tuple[int, ...]] = []

    def outcome(inputs: list[Tensor]) -> str:
        shape = tuple(inputs[0].shape)
        seen.append(shape)
        return "same" if shape[3] == 64 else ""

    image = [torch.zeros(2, 3, 128, 64)]
    assert tried(image, axes_of(image), outcome, one_sample=True, several=True) == {
        "batch": "same",
        "height": "same",
        "width": "",
    }
    assert seen[0] == (3, 3, 64, 96)
    assert (1, 3, 64, 64) in seen
    assert len(set(seen)) < 8


def test_one_sample_is_another_batch_and_the_cheapest_and_lengths_beyond_a_limit_are_tried() -> None:
    seen: list[tuple[int, ...]] = []

    def outcome(inputs: list[Tensor]) -> str:
        seen.append(tuple(inputs[0].shape))
        return "fixed" if inputs[0].shape[1] > 8 else "same"

    ids = [torch.zeros(2, 5, dtype=torch.long)]
    found = tried(ids, axes_of(ids), outcome, one_sample=True, beyond=(4, 9, 21))
    assert found == {"batch": "same", "sequence length": "fixed"}
    assert seen == [(1, 2), (1, 9)]  # 4 is no limit here, and 21 costs too much


def test_what_no_image_can_be_compared_with_is_tried_once() -> None:
    seen: list[tuple[int, ...]] = []

    def outcome(inputs: list[Tensor]) -> str:
        seen.append(tuple(inputs[0].shape))
        return "same" if inputs[0].shape[2:] == (64, 64) else UNKNOWN

    image = [torch.zeros(2, 3, 64, 64)]
    found = tried(image, axes_of(image), outcome, one_sample=True)
    assert found == {"batch": "same", "height": UNKNOWN, "width": UNKNOWN}
    assert seen == [(1, 3, 32, 96), (1, 3, 32, 32), (1, 3, 64, 64)]


def test_values_are_those_of_the_example() -> None:
    ids = torch.arange(10).reshape(2, 5)

    def outcome(inputs: list[Tensor]) -> str:
        assert inputs[0].max() < 10
        assert len(set(inputs[0].flatten().tolist())) > 1
        return "fixed"

    assert tried([ids], axes_of([ids]), outcome, one_sample=False) == {
        "batch": "fixed",
        "sequence length": "fixed",
    }
