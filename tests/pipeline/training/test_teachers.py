from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.digits import Digits
from support.halving import halved
from torch import nn

from deadweight.pipeline.pruning.plan import plan_of
from deadweight.pipeline.pruning.saved import save_pruned
from deadweight.pipeline.training.checkpoint import write_tensors
from deadweight.pipeline.training.teachers import Teaching, soft_loss
from deadweight.targets.errors import ModelError

CPU = torch.device("cpu")


def saved(model: nn.Module, folder: Path) -> Path:
    write_tensors(folder / "model.safetensors", model.state_dict())
    return folder


@pytest.fixture
def teacher() -> nn.Module:
    torch.manual_seed(1)
    return Digits().build_model().eval()


def test_a_student_that_agrees_with_its_teachers_has_no_soft_loss() -> None:
    scores = torch.randn(8, 10)
    assert float(soft_loss({"output": scores}, [{"output": scores}] * 3, 4.0)) == pytest.approx(0, abs=1e-6)


def test_the_soft_loss_is_hintons_with_the_teachers_probabilities_averaged() -> None:
    student, one, other = (torch.randn(6, 10, generator=torch.Generator().manual_seed(s)) for s in range(3))
    soft = (F.softmax(one / 3, 1) + F.softmax(other / 3, 1)) / 2
    expected = 9 * (soft * (soft.log() - F.log_softmax(student / 3, 1))).sum(1).mean()
    found = soft_loss({"output": student}, [{"output": one}, {"output": other}], 3.0)
    torch.testing.assert_close(found, expected)


def test_outputs_that_are_no_classes_are_compared_in_units_of_the_teachers_variance() -> None:
    target = torch.randn(4, 7, 8, 8)
    found = soft_loss({"output": target + 2 * target.std()}, [{"output": target}], 4.0)
    assert float(found) == pytest.approx(4.0, rel=1e-3)


def test_the_loss_is_a_mixture_with_the_workloads(teacher: nn.Module, tmp_path: Path) -> None:
    batch = next(iter(Digits().batches("validation")))
    student = Digits().build_model().eval()
    outputs = student(batch["pixels"])
    folder = saved(teacher, tmp_path)
    with Teaching((folder,), share=0.25, temperature=2.0).loss(Digits(), student, CPU) as loss:
        found = loss(outputs, batch)
    soft = soft_loss({"output": outputs}, [{"output": teacher(batch["pixels"])}], 2.0)
    torch.testing.assert_close(found, 0.25 * soft + 0.75 * Digits().loss(outputs, batch))


def test_a_teacher_with_other_outputs_is_refused(tmp_path: Path, teacher: nn.Module) -> None:
    student = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 7))
    with (
        pytest.raises(
            ModelError, match=r"Teacher 1 of 1 has the outputs .*\(2, 10\).* the student .*\(2, 7\)"
        ),
        Teaching((saved(teacher, tmp_path),)).loss(Digits(), student, CPU),
    ):
        pass


def test_a_pruned_network_can_teach(teacher: nn.Module, tmp_path: Path) -> None:
    small, _, _ = halved(teacher, torch.rand(2, 64))
    plan = plan_of(small)
    assert plan is not None
    save_pruned(tmp_path, small, plan, Digits().example_inputs())
    batch = next(iter(Digits().batches("validation")))
    student = Digits().build_model().eval()
    with Teaching((tmp_path,), share=1.0).loss(Digits(), student, CPU) as loss:
        found = loss(student(batch["pixels"]), batch)
    outputs = {"output": student(batch["pixels"])}
    torch.testing.assert_close(found, soft_loss(outputs, [{"output": small(batch["pixels"])}], 4.0))
