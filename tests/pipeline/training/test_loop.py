from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.digits import Digits
from torch import Tensor, nn

from deadweight.pipeline.compression.masks import magnitude_masks, weights_of
from deadweight.pipeline.training.loop import Fitted, Schedule, TrainingJob, fit, training_sentence
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.targets.errors import ArtifactError, ModelError, RecipeError, WorkloadError


class PowerCutError(Exception):
    """Stands for a power cut."""


def trained(tmp_path: Path, workload: Any, schedule: Schedule, name: str = "a", **options: Any) -> Fitted:
    torch.manual_seed(0)
    model = workload.build_model()
    checkpoint = tmp_path / f"{name}.safetensors"
    job = TrainingJob(workload, NetworkFiles(), schedule, seed=0, checkpoint=checkpoint, **options)
    return fit(model, job)


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_training_learns_and_says_its_score(tmp_path: Path) -> None:
    fitted = trained(tmp_path, Digits(), Schedule(epochs=6))
    assert fitted.score > 0.9
    assert len(fitted.scores) == 6


def test_a_machine_with_slurm_warns_of_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "srun").write_text("#!/bin/sh")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert len(trained(tmp_path, Digits(), Schedule(epochs=1)).scores) == 1


def test_the_same_seed_gives_the_same_bits(tmp_path: Path) -> None:
    first = trained(tmp_path, Digits(), Schedule(epochs=2), "a")
    second = trained(tmp_path, Digits(), Schedule(epochs=2), "b")
    assert equal(first.model, second.model)


def test_a_training_that_was_cut_off_ends_with_the_bits_of_one_that_was_not(tmp_path: Path) -> None:
    whole = trained(tmp_path, Digits(), Schedule(epochs=4), "whole")

    def cut(done: int, total: int, what: str) -> None:
        if done > 0.6 * total:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        trained(tmp_path, Digits(), Schedule(epochs=4), "cut", progress=cut)
    steps: list[int] = []
    resumed = trained(
        tmp_path, Digits(), Schedule(epochs=4), "cut", progress=lambda done, total, what: steps.append(done)
    )
    assert steps[0] >= 500, "the first two epochs were trained again"
    assert equal(whole.model, resumed.model)
    assert whole.scores == resumed.scores
    assert (whole.resumed_epochs, resumed.resumed_epochs) == (0, 2)
    sentence = training_sentence(resumed, 4, Digits())
    assert sentence.startswith("4 epochs (2 from the interrupted run), validation accuracy")


def test_the_best_epoch_is_kept_unless_the_last_is_asked_for(tmp_path: Path) -> None:
    best = trained(tmp_path, Digits(), Schedule(epochs=5, learning_rate=0.05, decay="none"), "best")
    last = trained(
        tmp_path, Digits(), Schedule(epochs=5, learning_rate=0.05, decay="none", keep="last"), "last"
    )
    assert best.scores == last.scores
    assert best.score == max(best.scores)
    assert last.score == last.scores[-1]


def test_no_epochs_return_the_network_as_it_came(tmp_path: Path) -> None:
    torch.manual_seed(0)
    untouched = Digits().build_model()
    assert equal(trained(tmp_path, Digits(), Schedule(epochs=0)).model, untouched)


def test_a_loss_that_diverges_stops_with_its_step_and_keeps_the_epoch_before(tmp_path: Path) -> None:
    class Diverging(Digits):
        calls = 0

        def loss(self, outputs: Tensor, batch: Any) -> Tensor:
            self.calls += 1
            return super().loss(outputs, batch) * (float("nan") if self.calls == 20 else 1.0)

    with pytest.raises(ModelError, match="the loss is nan in epoch 2, step 4"):
        trained(tmp_path, Diverging(), Schedule(epochs=3))
    assert (tmp_path / "a.safetensors").exists()


def test_training_stops_when_validation_no_longer_gets_better_and_resumes_so(tmp_path: Path) -> None:
    schedule = Schedule(epochs=40, learning_rate=0.03, decay="none", patience=2)
    fitted = trained(tmp_path, Digits(), schedule)
    assert len(fitted.scores) < 40
    assert fitted.score == max(fitted.scores)
    assert max(fitted.scores[-2:]) <= max(fitted.scores[:-2])
    assert trained(tmp_path, Digits(), schedule).scores == fitted.scores


def test_a_checkpoint_of_another_seed_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, Digits(), Schedule(epochs=1))
    checkpoint = tmp_path / "a.safetensors"
    job = TrainingJob(Digits(), NetworkFiles(), Schedule(epochs=2), seed=5, checkpoint=checkpoint)
    with pytest.raises(RecipeError, match="seed 0, not 5"):
        fit(Digits().build_model(), job)


def test_a_damaged_checkpoint_says_what_to_delete(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(ArtifactError, match="is damaged") as caught:
        trained(tmp_path, Digits(), Schedule(epochs=1))
    assert "rm " in caught.value.cure


def test_a_validation_split_that_is_shuffled_is_refused(tmp_path: Path) -> None:
    class Shuffling(Digits):
        def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
            return super().batches("train", seed=int(torch.randint(1000, ())))

    with pytest.raises(WorkloadError, match=r"other values of .* when it was read a second time"):
        trained(tmp_path, Shuffling(), Schedule(epochs=1))


def test_mixed_precision_learns_too(tmp_path: Path) -> None:
    assert trained(tmp_path, Digits(), Schedule(epochs=6, precision="bf16-mixed")).score > 0.85


def test_tensors_that_are_shared_stay_shared(tmp_path: Path) -> None:
    class Tied(Digits):
        def build_model(self) -> nn.Module:
            model = nn.Sequential(
                nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10)
            )
            model[3].weight = model[2].weight
            return model

    model = trained(tmp_path, Tied(), Schedule(epochs=1)).model
    assert isinstance(model, nn.Sequential)
    assert model[3].weight is model[2].weight


def test_batch_norm_statistics_are_trained_and_returned(tmp_path: Path) -> None:
    class Normed(Digits):
        def build_model(self) -> nn.Module:
            return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))

    model = trained(tmp_path, Normed(), Schedule(epochs=2)).model
    assert not model.training
    assert float(model.state_dict()["1.running_mean"].abs().sum()) > 0


def test_masked_weights_stay_zero_under_momentum_and_decay_and_after_a_power_cut(tmp_path: Path) -> None:
    class Decaying(Digits):
        def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)

    torch.manual_seed(0)
    model = Decaying().build_model()
    masks = magnitude_masks(weights_of(model), 0.7)

    def run(name: str, epochs: int) -> Fitted:
        job = TrainingJob(
            Decaying(),
            NetworkFiles(),
            Schedule(epochs=epochs, decay="none"),
            seed=0,
            checkpoint=tmp_path / f"{name}.safetensors",
            masks=masks,
        )
        return fit(model, job)

    start = run("start", 0).model.state_dict()
    assert all(not start[name][~mask].any() for name, mask in masks.items())
    whole = run("whole", 3)
    run("cut", 1)
    assert equal(run("cut", 3).model, whole.model)
    state = whole.model.state_dict()
    assert all(not state[name][~mask].any() for name, mask in masks.items())
    assert all(bool((state[name][mask] != 0).all()) for name, mask in masks.items())
