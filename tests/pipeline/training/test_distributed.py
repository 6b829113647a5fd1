from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.digits import Digits
from support.halving import halved
from support.workloads import Images
from torch import nn

from deadweight.pipeline.compression.masks import magnitude_masks, weights_of
from deadweight.pipeline.training import checkpoint as on_disk
from deadweight.pipeline.training.distributed import spec_of
from deadweight.pipeline.training.loop import Fitted, Schedule, TrainingJob, fit
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.workloads.named import load_workload
from deadweight.targets.errors import ModelError, RecipeError


def trained(place: Path, epochs: int, processes: int, seed: int = 0) -> Fitted:
    torch.manual_seed(seed)
    job = TrainingJob(
        Digits(),
        NetworkFiles(),
        Schedule(epochs=epochs, processes=processes),
        seed=seed,
        checkpoint=place / "checkpoint.safetensors",
    )
    return fit(Digits().build_model(), job)


def test_a_workload_of_a_class_in_a_file_can_be_made_again() -> None:
    assert spec_of(Digits()) == "support.digits:Digits"


def test_a_workload_that_a_recipe_names_by_its_file_is_named_so_to_others_too(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("from support.digits import Digits\nclass Mine(Digits): ...\n")
    workload = load_workload("mine.py:Mine", tmp_path)
    assert spec_of(workload) == f"{file}:Mine"
    code = "import sys; from pathlib import Path; from deadweight import load_workload\n"
    code += f"sys.path[:] = {sys.path!r}; load_workload({spec_of(workload)!r}, Path('/'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_workload_that_no_other_process_can_make_is_refused(tmp_path: Path) -> None:
    class Local(Digits):
        pass

    with pytest.raises(RecipeError, match="processes = 1"):
        spec_of(Local())


@pytest.mark.slow
def test_two_processes_end_within_the_spread_of_the_seeds(tmp_path: Path) -> None:
    alone = [trained(tmp_path / f"alone-{seed}", 4, 1, seed).score for seed in range(3)]
    two = [trained(tmp_path / f"two-{seed}", 4, 2, seed).score for seed in range(3)]
    spread = max(statistics.stdev(alone), 0.005)
    assert abs(statistics.fmean(alone) - statistics.fmean(two)) < 3 * spread


@pytest.mark.slow
def test_a_pruned_residual_network_is_tuned_as_well_by_two_processes_as_by_one(tmp_path: Path) -> None:
    """Batch norm sees half a batch in each process; what that costs must be within what a seed does."""
    workload = Images()

    def tuned(model: nn.Module, processes: int, seed: int) -> float:
        job = TrainingJob(
            workload,
            NetworkFiles(),
            Schedule(epochs=4, processes=processes),
            seed=seed,
            checkpoint=tmp_path / f"{processes}-{seed}" / "checkpoint.safetensors",
        )
        return fit(model, job).score

    scores: dict[int, list[float]] = {1: [], 2: []}
    for seed in range(3):
        torch.manual_seed(seed)
        small, _, _ = halved(workload.build_model().eval(), workload.example_inputs()["image"])
        for processes, found in scores.items():
            found.append(tuned(small, processes, seed))
    spread = max(statistics.stdev(scores[1]), 0.01)
    assert min(scores[1] + scores[2]) > 0.5
    assert abs(statistics.fmean(scores[1]) - statistics.fmean(scores[2])) < 3 * spread


def children() -> list[int]:
    """The processes that train, by their command line."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command = (place / "cmdline").read_bytes().split(b"\0")
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if b"deadweight.pipeline.training.worker" in command and parent == os.getpid():
            found.append(int(place.name))
    return sorted(found)


@pytest.mark.slow
def test_a_killed_process_is_named_and_the_next_run_goes_on_at_the_last_epoch(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"

    def kill() -> None:
        while not (checkpoint.exists() and on_disk.reached(checkpoint).scores):
            time.sleep(0.02)
        os.kill(children()[-1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ModelError, match=r"Process \d of 2 .* was killed by SIGKILL in epoch \d+") as caught:
        trained(tmp_path, 400, 2)
    killer.join()
    assert "it resumes after epoch" in caught.value.cure
    assert not children()
    done = len(on_disk.reached(checkpoint).scores)
    first = on_disk.reached(checkpoint).scores
    assert 1 <= done < 400
    fitted = trained(tmp_path, done + 2, 2)
    assert len(fitted.scores) == done + 2
    assert fitted.scores[:done] == first


@pytest.mark.slow
def test_what_a_process_has_to_say_reaches_the_user(tmp_path: Path) -> None:
    from support.workloads import Diverging

    job = TrainingJob(
        Diverging(),
        NetworkFiles(),
        Schedule(epochs=2, processes=2),
        seed=0,
        checkpoint=tmp_path / "checkpoint.safetensors",
    )
    with pytest.raises(ModelError, match=r"Training diverged: the loss is nan in epoch 1, step 4"):
        fit(Diverging().build_model(), job)


@pytest.mark.slow
def test_masked_weights_stay_zero_in_two_processes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Digits().build_model()
    masks = magnitude_masks(weights_of(model), 0.7)
    job = TrainingJob(
        Digits(),
        NetworkFiles(),
        Schedule(epochs=2, processes=2),
        seed=0,
        checkpoint=tmp_path / "checkpoint.safetensors",
        masks=masks,
        rewind_step=3,
    )
    fitted = fit(model, job)
    for state in (fitted.model.state_dict(), load_file(tmp_path / "step-3.safetensors")):
        assert all(not state[name][~mask].any() for name, mask in masks.items())
        assert state["0.weight"].any()


class HalfBatches(Digits):
    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, torch.Tensor]]:
        for batch in super().batches(split, seed=seed):
            for at in range(0, len(batch["label"]), 32):
                yield {name: value[at : at + 32] for name, value in batch.items()}


def test_two_half_batches_make_the_step_of_a_whole_one(tmp_path: Path) -> None:
    """Each has half the weight, so the last ones, of unequal size, are left out of the comparison."""
    torch.manual_seed(0)
    model = Digits().build_model()
    found: list[torch.Tensor] = []
    for workload, accumulate in ((Digits(), 1), (HalfBatches(), 2), (HalfBatches(), 1)):
        job = TrainingJob(
            workload,
            NetworkFiles(),
            Schedule(epochs=1, accumulate=accumulate, decay="none"),
            seed=0,
            checkpoint=tmp_path / f"{len(found)}.safetensors",
        )
        found.append(fit(model, job).model.state_dict()["0.weight"])
    whole, halves, steps = found
    assert (whole - halves).abs().max() < 0.2 * (whole - steps).abs().max()
