"""The life of a graph form: tuned, by two processes too, distilled, pruned again, saved, loaded, deployed."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from support import graph_training, nets
from support.halving import done, halved
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.pruning.graphnet import GraphNet
from deadweight.pipeline.pruning.saved import load_pruned, save_pruned
from deadweight.pipeline.pruning.verify import verify

IMAGES, LABELS = graph_training.IMAGES, graph_training.LABELS
by_name = pytest.mark.parametrize("name", graph_training.BUILD)


@pytest.fixture(scope="module")
def young() -> dict[str, Any]:
    """The graph forms as surgery makes them; tests work on copies."""
    return {name: graph_training.graph_form(name) for name in graph_training.BUILD}


@by_name
def test_it_is_tuned_and_the_loss_falls(young: dict[str, Any], name: str) -> None:
    model = copy.deepcopy(young[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    losses = graph_training.tuned(model, IMAGES, LABELS, steps=60)
    assert losses[-1] < 0.7 * losses[0]
    assert all(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(model(IMAGES), model(IMAGES))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote that trained the graph forms together."""
    directory = tmp_path_factory.mktemp("trained")
    spawn(graph_training.one_of_two, (str(directory),), nprocs=2)  # type: ignore[no-untyped-call]
    return directory


@pytest.mark.slow
def test_two_processes_tune_it_as_one_does_on_the_joined_batch(young: dict[str, Any], trained: Path) -> None:
    first: dict[str, Tensor] = {}
    for name in graph_training.BUILD:
        first, second = (torch.load(trained / f"{name} {rank}.pt") for rank in range(2))
        start = young[name].state_dict()
        parameters = [key for key, _ in young[name].named_parameters()]
        assert all(torch.equal(first[key], second[key]) for key in parameters)
        assert not any(torch.equal(first[key], start[key]) for key in parameters)
    alone = copy.deepcopy(young["attention"])  # where no norm is over the batch
    graph_training.tuned(alone, IMAGES, LABELS)
    for key, value in alone.state_dict().items():
        assert torch.allclose(value, first[key], rtol=1e-5, atol=1e-5), key


ELSEWHERE = """
import sys, torch
moved, images = (torch.load(path, weights_only=False) for path in sys.argv[1:3])
found = {device: [model(image.to(device)) for image in images] for device, model in moved.items()}
torch.save(found, sys.argv[3])
"""


@pytest.mark.slow
def test_trained_by_two_it_is_moved_and_runs_elsewhere_at_other_sizes(trained: Path, tmp_path: Path) -> None:
    images = [nets.image(3, 3, *size, seed=5).double() for size in ((12, 20), (7, 5))]
    torch.save(images, tmp_path / "images.pt")
    files = (trained / "any size 0 moved.pt", tmp_path / "images.pt", tmp_path / "found.pt")
    subprocess.run([sys.executable, "-c", ELSEWHERE, *files], check=True, cwd=tmp_path)
    found = torch.load(files[2])
    own = graph_training.AnySize(8).double().eval()
    own.load_state_dict(torch.load(trained / "any size 0.pt"))
    for device, scores in found.items():
        for image, score in zip(images, scores, strict=True):
            expected = own(image)
            assert (score.device.type, score.dtype) == (device, torch.float64)
            assert score.shape == expected.shape
            assert device == "meta" or torch.allclose(score.cpu(), expected, rtol=1e-9)
    assert found.keys() == set(graph_training.ELSEWHERE)


@by_name
def test_it_is_distilled_and_comes_nearer_to_the_original(young: dict[str, Any], name: str) -> None:
    teacher, student = nets.lively(graph_training.BUILD[name]()), copy.deepcopy(young[name]).train()
    temperature = 3.0
    with torch.no_grad():
        soft = F.softmax(teacher(IMAGES) / temperature, 1)
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        own = F.log_softmax(student(IMAGES) / temperature, 1)
        loss = F.kl_div(own, soft, reduction="batchmean") * temperature**2
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@by_name
def test_it_is_pruned_again_after_it_was_tuned(young: dict[str, Any], name: str) -> None:
    model = copy.deepcopy(young[name])
    graph_training.tuned(model, IMAGES, LABELS)
    smaller, plan, groups = halved(model, IMAGES[:2])
    assert isinstance(smaller, GraphNet)
    assert verify(model, smaller, plan, groups).max_relative_error < 1e-5
    assert size(smaller) < 0.6 * size(model)
    assert [earlier.form for earlier in done(smaller).earlier] == ["graph"]
    losses = graph_training.tuned(smaller, IMAGES, LABELS, steps=12)
    assert losses[-1] < losses[0]


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@by_name
def test_what_was_pruned_and_tuned_twice_comes_back_bit_by_bit(
    young: dict[str, Any], name: str, tmp_path: Path
) -> None:
    model = copy.deepcopy(young[name])
    graph_training.tuned(model, IMAGES, LABELS)
    smaller, plan, _ = halved(model, IMAGES[:2])
    graph_training.tuned(smaller, IMAGES, LABELS)
    save_pruned(tmp_path, smaller, plan, (IMAGES[:2],))
    loaded = load_pruned(graph_training.BUILD[name], tmp_path)
    assert torch.equal(loaded.eval()(IMAGES), smaller(IMAGES))
    losses = [graph_training.tuned(model, IMAGES, LABELS) for model in (smaller, loaded)]
    assert losses[0] == losses[1]  # it learns on as the one that was saved


@by_name
def test_it_is_exported_and_onnx_runtime_computes_the_same(
    young: dict[str, Any], name: str, tmp_path: Path
) -> None:
    model = copy.deepcopy(young[name])
    graph_training.tuned(model, IMAGES, LABELS)
    to_onnx(model, {"image": IMAGES[:2]}, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"image": IMAGES.numpy()})
    expected = model(IMAGES).detach()
    assert float((torch.from_numpy(found) - expected).abs().max() / expected.abs().max()) < 1e-5
