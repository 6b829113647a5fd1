from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.digits import Digits
from support.nets import Mlp
from torch import nn

from deadweight.export.coding.cluster import cluster as clustered
from deadweight.pipeline.stages.cluster import Cluster, set_values, share_gradients, trained_books
from deadweight.pipeline.stages.sparsify import Sparsify
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.errors import RecipeError
from deadweight.targets.target import load_target


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Work:
    place = tmp_path_factory.mktemp("trained")
    return Train(epochs=3)(Work(Digits(), load_target("x86-cpu"), place, networks=NetworkFiles()))


def values(work: Work, name: str = "clustered") -> dict[str, Any]:
    model = work.model(work.variant(name))
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


def score(work: Work) -> float:
    """What the stage said of its network."""
    return float(work.log[-1].words[0].split()[-1])


def test_weights_share_values_that_were_trained_and_zeros_stay(trained: Work, tmp_path: Path) -> None:
    work = dataclasses.replace(trained, directory=tmp_path)
    sparse = Sparsify(share=0.7, epochs=1)(work)
    raw = Cluster(bits=2, epochs=0)(dataclasses.replace(sparse, directory=tmp_path / "raw"))
    tuned = Cluster(bits=2, epochs=3)(dataclasses.replace(sparse, directory=tmp_path / "tuned"))
    for name, weight in values(tuned).items():
        before = values(sparse, "sparse")[name]
        if weight.ndim > 1:
            assert len(np.unique(weight[weight != 0])) <= 4
            assert not weight[before == 0].any()
            assert not np.array_equal(weight, values(raw)[name])
        assert not (weight[weight.ndim > 1 :].view(np.uint32) & 0xFFFF).any()
    assert score(tuned) > score(raw)


def test_one_book_serves_all_layers_after_training_too(trained: Work, tmp_path: Path) -> None:
    work = Cluster(bits=3, shared=True, epochs=1)(dataclasses.replace(trained, directory=tmp_path))
    weights = [weight.reshape(-1) for weight in values(work).values() if weight.ndim > 1]
    assert len(np.unique(np.concatenate(weights))) <= 8


def test_layers_take_their_own_bits_and_may_be_left_alone(trained: Work, tmp_path: Path) -> None:
    names = [
        name.removesuffix(".weight") for name, value in values(trained, "original").items() if value.ndim > 1
    ]
    stage = Cluster(bits=3, bits_of={names[0]: 2}, dense=(names[-1],), epochs=0, short=False)
    found = values(stage(dataclasses.replace(trained, directory=tmp_path)))
    assert len(np.unique(found[f"{names[0]}.weight"])) <= 4
    before = values(trained, "original")
    assert np.array_equal(found[f"{names[-1]}.weight"], before[f"{names[-1]}.weight"])
    with pytest.raises(RecipeError, match='no weights called "nowhere"'):
        Cluster(bits_of={"nowhere": 4})(dataclasses.replace(trained, directory=tmp_path))


@pytest.mark.parametrize("gradient", ["sum", "mean"])
def test_a_shared_gradient_is_the_derivative_by_the_code_book(gradient: Any) -> None:
    """Against autograd through the code book itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    weights = {name: value.detach().numpy() for name, value in model.named_parameters() if value.dim() > 1}
    weights["0.weight"][0, :3] = 0
    one = clustered(weights, 2)
    books = dict.fromkeys(weights, one)
    set_values(model, books)
    inputs = torch.randn(7, 6)
    model(inputs).square().sum().backward()
    share_gradients(model, books, gradient)

    book = torch.tensor(one.book, requires_grad=True)
    whole = torch.cat([torch.zeros(1), book])
    tied = {name: whole[torch.from_numpy(one.index[name])] for name in weights}
    torch.func.functional_call(model, tied, inputs).square().sum().backward()
    assert book.grad is not None
    places = np.concatenate([index.reshape(-1) for index in one.index.values()])
    counts = np.bincount(places, minlength=len(one.book) + 1)
    for name, parameter in model.named_parameters():
        if name not in weights:
            continue
        assert parameter.grad is not None
        index = one.index[name]
        wanted = np.concatenate([[0.0], book.grad.numpy() / (counts[1:] if gradient == "mean" else 1)])[index]
        assert np.allclose(parameter.grad.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_a_book_after_training_is_the_mean_of_its_weights() -> None:
    model = Mlp()
    name = next(name for name, value in model.named_parameters() if value.dim() > 1)
    weight = dict(model.named_parameters())[name].detach().numpy()
    made = clustered({name: weight}, 3)
    set_values(model, {name: made})
    with torch.no_grad():
        dict(model.named_parameters())[name].add_(0.25)
    found = trained_books(model, {name: made})[name]
    assert np.allclose(found.book, made.book + 0.25, atol=1e-6)
