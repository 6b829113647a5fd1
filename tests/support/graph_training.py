"""Training of a graph form, alone or in two processes; in a file that a new process can import."""

from __future__ import annotations

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

IMAGES = nets.image(16, 3, 8, 8, seed=7)
LABELS = torch.arange(16) % 5


def graph_form(name: str) -> Any:
    """Half of a network, as a graph."""
    small, _, _ = halved(nets.lively(BUILD[name]()), IMAGES[:2], "graph")
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
    """One process of two: trains each network on its half of the batch, and writes its weights."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    for name in BUILD:
        model = graph_form(name)
        tuned(nn.parallel.DistributedDataParallel(model), IMAGES[rank::2], LABELS[rank::2])
        torch.save(model.state_dict(), Path(directory) / f"{name} {rank}.pt")
    dist.destroy_process_group()
