from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from support.block_nets import Stages
from support.workloads import Deep
from torch import Tensor, nn

from deadweight.export.onnx_graph.run import runner
from deadweight.export.to_onnx import to_onnx
from deadweight.pipeline.budget.grids import Network
from deadweight.pipeline.budget.resized import of_module, unlike
from deadweight.pipeline.budget.resolutions import (
    RESOLUTION,
    at_resolution,
    resolutions_of,
    with_resolutions,
)
from deadweight.pipeline.pruning.groups import choose
from deadweight.pipeline.pruning.plan import plan_of
from deadweight.pipeline.pruning.saved import load_pruned, save_pruned
from deadweight.pipeline.pruning.surgery import apply
from deadweight.pipeline.pruning.trace import trace
from deadweight.pipeline.pruning.verify import verify
from deadweight.pipeline.stages.budget import Budget
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Work
from deadweight.targets.errors import RecipeError, WorkloadError
from deadweight.targets.target import load_target


class Sharp(Deep):
    resolutions: ClassVar[object] = (4, 8)


class Large(Deep):
    """The same images with larger pixels, so that half of them lose nothing; its layers take its time."""

    resolutions: ClassVar[object] = (16, 32)

    def build_model(self) -> nn.Module:
        def conv(before: int, after: int) -> list[nn.Module]:
            return [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]

        layers = [*conv(3, 32), *conv(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)]
        return nn.Sequential(*layers)

    def example_inputs(self) -> dict[str, Tensor]:
        return {"image": _larger(super().example_inputs()["image"])}

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        for batch in super().batches(split, seed=seed):
            yield {**batch, "image": _larger(batch["image"])}


def _larger(image: Tensor) -> Tensor:
    return image.repeat_interleave(4, 2).repeat_interleave(4, 3)


class OfOneSize(Sharp):
    """Its head is for 8 x 8 pixels."""

    def build_model(self) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 4))


def smaller(image: Tensor) -> Tensor:
    return F.interpolate(image, size=(4, 4), mode="bilinear")


def test_a_network_at_a_lower_resolution_is_the_original_on_resized_images_wherever_it_goes(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    model, example = unlike(Stages()).eval(), {"image": torch.randn(2, 3, 8, 8)}
    groups = trace(model, example)
    plan = choose(groups, {one.name: torch.rand(one.size) for one in groups}, ratio=0.5)
    cut = apply(model, plan, groups)
    small = at_resolution(cut, (4, 4))
    record = plan_of(small)
    assert type(small) is Stages
    assert record is not None
    with torch.no_grad():
        expected = cut(smaller(example["image"]))
        assert torch.equal(small(example["image"]), expected)
        assert torch.equal(pickle.loads(pickle.dumps(small))(example["image"]), expected)
        save_pruned(tmp_path, small, record, example)
        assert torch.equal(load_pruned(Stages, tmp_path).eval()(example["image"]), expected)
    to_onnx(small, example, tmp_path / "small.onnx")
    (found,) = runner(onnx.load(tmp_path / "small.onnx"))({"image": example["image"].numpy()}).values()
    assert np.allclose(found, expected.numpy(), atol=1e-5)
    assert "resized to 4 x 4" in str(record)
    again = trace(small, example)
    third = choose(again, {one.name: torch.rand(one.size) for one in again}, ratio=0.3)
    verify(small, apply(small, third, again), third, again)


def test_files_at_each_resolution_and_width_are_those_of_the_cut_networks(tmp_path: Path) -> None:
    workload = Sharp()
    model, example = unlike(workload.build_model()).eval(), workload.example_inputs()
    groups = trace(model, example)
    levels = {one.name: (one.size // 2, one.size) for one in [*groups][:2]}

    def of(after: object) -> Network:
        return of_module(model, groups, levels, example, seed=0, after=after)  # type: ignore[arg-type]

    network, sizes = with_resolutions(of, model, workload)
    assert sizes == {4: (4, 4), 8: (8, 8)}
    assert network.levels[RESOLUTION] == (4, 8)
    narrow = {name: own[0] for name, own in network.levels.items()}
    scores = {name: torch.arange(groups[name].size, 0, -1.0) for name in levels}
    plan = choose(groups, scores, keep={name: narrow[name] for name in levels})
    cut = at_resolution(apply(model, plan, groups), (4, 4))
    to_onnx(cut, example, tmp_path / "cut.onnx")
    (made,), (wanted,) = (
        runner(file)({"image": example["image"].numpy()}).values()
        for file in (network.file_at(narrow), onnx.load(tmp_path / "cut.onnx"))
    )
    assert made.shape == wanted.shape
    shapes = [
        [tuple(tensor.dims) for tensor in file.graph.initializer]
        for file in (network.file_at(narrow), onnx.load(tmp_path / "cut.onnx"))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("declared", [(8,), (8, 4), (4, 4, 8), (4, 6), 8, ("4", 8), (0, 8)])
def test_resolutions_that_are_none_are_refused(declared: object) -> None:
    workload = Sharp()
    workload.resolutions = declared  # type: ignore[misc]
    with pytest.raises(WorkloadError, match="and the example has 8 pixels") as caught:
        resolutions_of(workload)
    assert "resolutions = (48, 64)" in caught.value.cure


def test_a_workload_without_resolutions_and_a_network_that_does_not_take_them_are_refused() -> None:
    with pytest.raises(WorkloadError, match="no attribute `resolutions`"):
        resolutions_of(Deep())
    workload = OfOneSize()

    def asked(after: object) -> Network:
        raise AssertionError

    with pytest.raises(WorkloadError, match=r"does not take images of 4 x 4 pixels.*: mat1 and mat2"):
        with_resolutions(asked, workload.build_model().eval(), workload)


def test_a_resolution_alone_is_no_budget() -> None:
    with pytest.raises(RecipeError, match="chooses resolution, without widths"):
        Budget(speedup=2.0, choose=("resolution",))


@pytest.mark.slow
def test_the_budget_takes_fewer_pixels_where_that_costs_less_than_widths(tmp_path: Path) -> None:
    workload = Large()
    work = Work(workload, load_target("x86-cpu"), tmp_path, networks=NetworkFiles())
    work = work.with_model("original", workload.build_model().eval())
    asked = Budget(
        speedup=2.0,
        choose=("widths", "resolution"),
        criterion="weight_l2",
        networks=16,
        finalists=2,
        events=12,
        norms=0,
    )
    done = asked(work)
    found = json.loads(done.artifacts["search"].checked().read_text())
    (chosen,) = (one for one in found["tried"] if one["chosen"])
    assert chosen["kept"]
    assert any("of 16 and 32 pixels it takes" in word for word in done.log[-1].words)
    plan = done.plan(done.latest())
    assert plan is not None
    resized = [step.resized for step in (*plan.earlier, plan) if step.resized]
    assert resized == ([(16, 16)] if chosen["widths"][RESOLUTION] == 16 else [])
    again = dataclasses.replace(done, networks=NetworkFiles()).model()
    assert again(workload.example_inputs()["image"]).shape == (2, 10)
