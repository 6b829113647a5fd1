"""The networks of the benchmark of compression: how each technique makes its own, by the stages of a recipe.

Shares, ranks and bits were set beforehand and not searched. What was made stays in runs/compression, so that
a technique which starts from another's network does not make it again.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import grid
from deadweight.pipeline.compression.masks import magnitude_masks, masked, save_masks, weights_of
from deadweight.pipeline.stage import Stage
from deadweight.pipeline.stages.cluster import Cluster
from deadweight.pipeline.stages.factorize import Factorize
from deadweight.pipeline.stages.finetune import Finetune
from deadweight.pipeline.stages.prune import Prune
from deadweight.pipeline.stages.sparsify import Sparsify
from deadweight.pipeline.stages.train import Train
from deadweight.pipeline.training.loop import Schedule, TrainingJob, fit
from deadweight.pipeline.training.networks import NetworkFiles
from deadweight.pipeline.work import Variant, Work
from deadweight.pipeline.workload import Workload
from deadweight.pipeline.workloads.named import load_workload
from deadweight.targets.artifact import Artifact
from deadweight.targets.target import load_target

RUNS = Path("runs") / "compression"
EPOCHS = {"lenet5": 4}  # of an original that the other benchmarks do not have


class LeNet5(nn.Module):
    """Two convolutions with pooling and two linear layers, in the widths of Caffe's example."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.head = nn.Linear(500, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(image)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        scores: Tensor = self.head(F.relu(self.fc1(x.flatten(1))))
        return scores


@dataclass(frozen=True)
class DeepCompression:
    """Rounds of magnitude pruning with shares of their own for each layer, then one code book a layer.

    Attributes:
        kept: the share of each layer's weights that is left in the end.
    """

    kept: tuple[tuple[str, float], ...]
    epochs: tuple[int, ...] = (1, 1, 2)

    def __call__(self, work: Work) -> Work:
        model, masks = work.model(), None
        for number, epochs in enumerate(self.epochs, start=1):
            weights = weights_of(model)
            # The same factor in every round takes each layer to its share.
            gone = {name: 1 - share ** (1 / len(self.epochs)) for name, share in self.kept}
            masks = magnitude_masks(weights, 0.5, shares=gone, before=masks)
            job = TrainingJob(
                work.workload,
                work.networks,
                Schedule(epochs),
                seed=work.seed + number,
                checkpoint=work.directory / f"round-{number}.safetensors",
                progress=work.progress,
                what="deep compression",
                masks=masks,
            )
            model = fit(masked(model, masks), job).model
        assert masks is not None
        path = work.directory / "deep" / "masks.safetensors"
        save_masks(path, masks, "free")
        return work.with_model("deep", model, beside={"masks": path})


@dataclass(frozen=True)
class Made:
    """A network by its name: what it starts from, and the stages that make it."""

    start: str
    stages: tuple[Stage, ...]


def networks(network: str) -> dict[str, Made]:
    """The networks of the techniques."""
    keep = {"mlp": (0.8, 0.93, 0.97), "lenet": (0.6, 0.85, 0.94), "lenet5": (0.7, 0.9, 0.96)}[network]
    ranks: dict[str, dict[str, Any]] = {
        "mlp": {"fc1": 40, "fc2": 40},
        "lenet": {"fc1": 24, "fc2": 24},
        "lenet5": {"conv2": 24, "fc1": 24},
    }
    published = {
        "mlp": (("fc1", 0.08), ("fc2", 0.09), ("head", 0.26)),
        "lenet": (("fc1", 0.08), ("fc2", 0.09), ("head", 0.26)),
        "lenet5": (("conv1", 0.66), ("conv2", 0.12), ("fc1", 0.08), ("head", 0.19)),
    }
    wide = {"conv1": 8, "conv2": 8} if network == "lenet5" else {}
    clusters = Cluster(bits=5, price=0.02, epochs=1)
    return {
        "clustered": Made("original", (clusters,)),
        "sparse": Made(
            "original",
            tuple(Sparsify(share=s, scope="global", epochs=e) for s, e in zip(keep[:2], (1, 2), strict=True)),
        ),
        "sparser": Made("sparse", (Sparsify(share=keep[2], scope="global", epochs=2),)),
        "sparse clustered": Made("sparse", (clusters,)),
        "sparser clustered": Made("sparser", (clusters,)),
        "neurons": Made(
            "original", (Prune(parameters=0.75, criterion="taylor", align=False), Finetune(epochs=2))
        ),
        "neurons clustered": Made("neurons", (clusters,)),
        "thin": Made("original", (Factorize(ranks=ranks[network]), Finetune(epochs=2))),
        "deep": Made("original", (DeepCompression(published[network]),)),
        "deep clustered": Made("deep", (Cluster(bits=6 if not wide else 5, bits_of=wide, epochs=1),)),
    }


@functools.cache
def workload_of(network: str) -> Workload:
    """The example's workload with one of the networks."""
    if network != "lenet5":
        return grid.workload_of(network)
    workload = load_workload("workload.py:Mlp", grid.EXAMPLE)
    workload.build_model = LeNet5  # type: ignore[method-assign]
    return workload


def original(network: str, seed: int) -> Work:
    """The trained original of a seed; made once, and shared with the other benchmarks where they have it."""
    if network in grid.EPOCHS:
        return grid.original(network, seed)
    work = Work(
        workload_of(network),
        load_target("x86-cpu"),
        RUNS / f"{network}-{seed}",
        seed,
        networks=NetworkFiles(),
    )
    return once(work, "original", Train(epochs=EPOCHS[network]))


def made(network: str, name: str, seed: int) -> Work:
    """The network of that name, the newest of its Work; made once."""
    if name == "original":
        return original(network, seed)
    wanted = networks(network)[name]
    start = made(network, wanted.start, seed)
    return once(dataclasses.replace(start, directory=RUNS / f"{network}-{seed}"), name, *wanted.stages)


def once(work: Work, name: str, *stages: Stage) -> Work:
    """What stages make of the newest network, from the disk where it was made before."""
    place = work.directory / name.replace(" ", "-")
    if not (place / "done").exists():
        latest = work
        for number, stage in enumerate(stages, start=1):
            latest = stage(dataclasses.replace(latest, directory=place / str(number)))
        shutil.copytree(latest.latest().path("weights").parent, place / "kept", dirs_exist_ok=True)
        (place / "done").touch()
    kinds = {"weights": "model.safetensors", "plan": "plan.json", "masks": "masks.safetensors"}
    kept = {kind: place / "kept" / file for kind, file in kinds.items()}
    files = {kind: Artifact.of(path) for kind, path in kept.items() if path.exists()}
    return work.with_variant(Variant(name, files))
