from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deadweight.pipeline.compression.masks import (
    all_kept,
    is_structured,
    kept_share,
    load_masks,
    magnitude_masks,
    masked,
    random_masks,
    save_masks,
    structured_masks,
    threshold_masks,
    weights_of,
)
from deadweight.pipeline.training.loop import hold, holding
from deadweight.targets.errors import ArtifactError, ModelError, RecipeError


class Words(nn.Module):
    """An embedding, a convolution, a norm and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.conv = nn.Conv1d(8, 12, 3)
        self.norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, words: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.conv(self.table(words).transpose(1, 2))).mean(2))
        return found


def weights(*shapes: tuple[int, ...], seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"layer{at}.weight": torch.randn(shape, generator=generator) for at, shape in enumerate(shapes)}


def test_biases_norms_and_embeddings_are_never_masked() -> None:
    assert list(weights_of(Words())) == ["conv.weight", "head.weight"]


def test_layers_that_are_named_stay_dense_and_a_wrong_name_is_refused() -> None:
    assert list(weights_of(Words(), dense=["head"])) == ["conv.weight"]
    with pytest.raises(RecipeError, match=r'no weights called "hat".*\n.*conv, head'):
        weights_of(Words(), dense=["hat"])
    with pytest.raises(ModelError, match="no weights that could be masked"):
        weights_of(Words(), dense=["conv", "head"])


def test_the_smallest_of_each_layer_go() -> None:
    layer = {"a": torch.tensor([[1.0, -5.0], [0.5, 3.0]]), "b": torch.tensor([[0.1, 0.2, -0.3, 0.4]])}
    masks = magnitude_masks(layer, 0.5)
    assert masks["a"].tolist() == [[False, True], [False, True]]
    assert masks["b"].tolist() == [[False, False, True, True]]


def test_a_global_cut_takes_the_smallest_of_all_but_leaves_each_layer_one() -> None:
    layer = {"a": torch.tensor([[1.0, -5.0], [0.5, 3.0]]), "b": torch.tensor([[0.1, 0.2, -0.3, 0.4]])}
    masks = magnitude_masks(layer, 0.5, scope="global")
    assert masks["a"].all()
    assert masks["b"].tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("scope", ["local", "global"])
def test_rounds_never_bring_a_weight_back_and_take_their_share_of_what_is_left(scope: str) -> None:
    layers = weights((40, 30), (30, 20))
    before = all_kept(layers)
    for number in range(1, 6):
        moved = {
            name: value * before[name] + 0.0
            for name, value in weights((40, 30), (30, 20), seed=number).items()
        }
        masks = magnitude_masks(moved, 0.2, scope=scope, before=before)  # type: ignore[arg-type]
        assert all(bool((before[name] | ~masks[name]).all()) for name in masks)
        assert kept_share(masks) == pytest.approx(0.8**number, abs=0.002)
        before = masks


def test_a_layer_may_have_a_share_of_its_own() -> None:
    masks = magnitude_masks(weights((20, 10), (20, 10)), 0.2, shares={"layer1": 0.1})
    assert [int(mask.sum()) for mask in masks.values()] == [160, 180]


@given(st.floats(0.01, 0.99), st.integers(0, 50))
def test_a_cut_takes_what_was_asked_for_to_the_weight(share: float, seed: int) -> None:
    masks = magnitude_masks(weights((7, 11), (3, 5), seed=seed), share)
    assert [int((~mask).sum()) for mask in masks.values()] == [
        min(int(round(share * size, 9)), size - 1) for size in (77, 15)
    ]


def test_a_threshold_drops_what_is_under_it() -> None:
    masks = threshold_masks({"a": torch.tensor([[0.001, -0.0005], [0.2, -0.3]])}, 0.001)
    assert masks["a"].tolist() == [[True, False], [True, True]]


def test_a_threshold_that_keeps_nothing_is_refused_with_the_largest_weight() -> None:
    with pytest.raises(ModelError, match=r"threshold 5 keeps no weight of b: the largest there is 0\.4"):
        threshold_masks({"a": torch.full((2, 2), 7.0), "b": torch.full((1, 4), 0.4)}, 5.0)


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan")])
def test_a_threshold_that_is_no_positive_number_is_refused(threshold: float) -> None:
    with pytest.raises(RecipeError, match="Give a number above 0"):
        threshold_masks({"a": torch.ones(2, 2)}, threshold)


def test_two_of_four_keeps_the_two_largest_of_every_four_inputs() -> None:
    masks = structured_masks({"a": torch.tensor([[1.0, -5.0, 0.5, 3.0, 0.0, 0.0, 0.0, 0.1]])})
    assert masks["a"].tolist() == [[False, True, False, True, True, False, False, True]]


def test_two_of_four_holds_along_the_inputs_of_each_position_of_a_kernel() -> None:
    weight = weights((6, 8, 3, 3))["layer0.weight"]
    mask = structured_masks({"a": weight})["a"]
    for out in range(6):
        for at in range(9):
            row = mask[out, :, at // 3, at % 3]
            assert [int(row[start : start + 4].sum()) for start in (0, 4)] == [2, 2]
    assert is_structured(mask)
    assert not is_structured(torch.ones_like(mask))
    assert not is_structured(torch.zeros(3, 6, dtype=torch.bool))


@given(st.integers(0, 1000))
def test_no_other_choice_of_two_of_four_keeps_more(seed: int) -> None:
    weight = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed))
    kept = float(weight.abs()[structured_masks({"a": weight})["a"]].sum())
    every = torch.combinations(weight.abs()[0], 2).sum(1)
    assert kept == pytest.approx(float(every.max()))


def test_two_of_four_on_a_width_that_is_no_multiple_of_four_names_layers_and_cure() -> None:
    odd = weights((8, 1, 3, 3), (8, 8), (10, 6))
    with pytest.raises(ModelError, match=r"layer0 \(1 inputs\), layer2 \(6 inputs\)") as caught:
        structured_masks(odd)
    assert 'dense = ["layer0", "layer2"]' in caught.value.cure


def test_random_masks_keep_as_many_of_each_layer_but_others() -> None:
    masks = magnitude_masks(weights((20, 10), (30, 4)), 0.7)
    drawn = random_masks(masks, seed=3)
    assert [int(one.sum()) for one in drawn.values()] == [int(one.sum()) for one in masks.values()]
    assert not any(torch.equal(drawn[name], masks[name]) for name in masks)
    assert all(torch.equal(drawn[name], again) for name, again in random_masks(masks, seed=3).items())


def test_a_masked_copy_is_zero_where_the_mask_is_and_leaves_the_network_alone() -> None:
    model = nn.Linear(8, 4)
    whole = model.weight.detach().clone()
    masks = structured_masks({"weight": whole})
    sparse = masked(model, masks)
    assert torch.equal(sparse.state_dict()["weight"], whole * masks["weight"])
    assert torch.equal(model.weight.detach(), whole)


def test_what_an_optimizer_moved_is_zero_again() -> None:
    model = nn.Linear(4, 2)
    held = holding(model, {"weight": torch.tensor([[True, False, True, False]] * 2)})
    with torch.no_grad():
        model.weight.fill_(1.0)
    hold(held)
    assert model.weight.tolist() == [[1.0, 0.0, 1.0, 0.0]] * 2


def test_masks_of_another_network_are_refused() -> None:
    for name, shape in (("weight", (2, 3)), ("other", (2, 4))):
        with pytest.raises(ModelError, match=f'mask of "{name}"'):
            holding(nn.Linear(4, 2), {name: torch.ones(shape, dtype=torch.bool)})


def test_masks_are_read_back_with_their_pattern_and_damage_is_noticed(tmp_path: Path) -> None:
    masks = structured_masks(weights((4, 8)))
    save_masks(tmp_path / "m.safetensors", masks, "2:4")
    read, pattern = load_masks(tmp_path / "m.safetensors")
    assert pattern == "2:4"
    assert torch.equal(read["layer0.weight"], masks["layer0.weight"])
    (tmp_path / "m.safetensors").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="damaged"):
        load_masks(tmp_path / "m.safetensors")
