"""Training of a graph form, alone or in two processes; in a file that a new process can import."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from support import nets, sequence_nets
from support.halving import halved

BUILD: dict[str, Callable[[], nn.Module]] = {
    "batch norm": nets.ResidualCnn,
    "attention": sequence_nets.Vit,
}
"""Both take (batch, 3, 8, 8) and return five scores."""


class AnySize(nn.Module):
    """A ramp made in forward, a mean written as a sum over height times width, and a width in a view."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.width = width
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 5)

    def forward(self, image: Tensor) -> Tensor:
        y = F.relu(self.norm(self.conv(image)))
        y = y * (torch.arange(y.shape[3], dtype=y.dtype, device=y.device) + 1).rsqrt()
        y = y.view(y.shape[0], self.width, -1).sum(-1) / (y.shape[2] * y.shape[3])
        scores: Tensor = self.head(y)
        return scores


BUILD_ALL = BUILD | {"any size": AnySize}
ELSEWHERE = ("cpu", "cuda" if torch.cuda.is_available() else "meta")

IMAGES = nets.image(16, 3, 8, 8, seed=7)
LABELS = torch.arange(16) % 5


def graph_form(name: str) -> Any:
    """Half of a network, as a graph."""
    small, _, _ = halved(nets.lively(BUILD_ALL[name]()), IMAGES[:2], "graph")
    return small


def tuned(model: nn.Module, images: Tensor, labels: Tensor, *, steps: int = 4) -> list[float]:
    """Trains in place; the loss before each step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    model.train()
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def one_of_two(rank: int, directory: str) -> None:
    """One process of two: trains each network on its half of the batch; writes its weights, and the network
    in double precision for each device."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    for name in BUILD_ALL:
        model = graph_form(name)
        tuned(nn.parallel.DistributedDataParallel(model), IMAGES[rank::2], LABELS[rank::2])
        torch.save(model.state_dict(), Path(directory) / f"{name} {rank}.pt")
        moved = {device: copy.deepcopy(model).double().to(device) for device in ELSEWHERE}
        torch.save(moved, Path(directory) / f"{name} {rank} moved.pt")
    dist.destroy_process_group()
