"""What the statistics of a calibration pass cost, over the plain forward pass of the same network.

    python benchmarks/pruning/statistics_cost.py [--threads 1 2] [--pairs 30] [--batch 8] [--size 224]

A network of ResNet-18's size is defined here. Plain and observed passes alternate, each pair gives one
ratio, and the median of the pairs' ratios is printed with its 95 % interval (order statistics: no assumption
on their distribution). CPU time is the process's, of all its threads, and is what to read on a shared
machine; wall time is beside it. Further rows plant units whose mean dwarfs their deviation, which are
measured twice. On more threads than there are free cores both times measure the waiting.
"""

from __future__ import annotations

import argparse
import math
import statistics as figures
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deadweight.pipeline.importance.activations import observe
from deadweight.pipeline.pruning.trace import trace

GOAL = 1.15
WARM_UP = 3
PLANTED = (0.0, 0.1, 0.5)


@dataclass(frozen=True)
class Row:
    """One network on one number of threads; ratios are (median, low, high)."""

    plain_s: float
    cpu: tuple[float, float, float]
    wall: tuple[float, float, float]
    twice: float
    units: int
    values: int


class Block(nn.Module):
    """The basic block of He et al. 2016, "Deep Residual Learning"."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.short: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.short = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.short(x))


class ResNet18(nn.Module):
    """11.7 million parameters; `width` is 64 in the paper."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        pairs = zip(widths, widths[1:], (1, 2, 2, 2), strict=False)
        self.blocks = nn.Sequential(
            *(block for a, b, s in pairs for block in (Block(a, b, s), Block(b, b, 1)))
        )
        self.fc = nn.Linear(8 * width, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.conv(image))), 3, 2, 1)
        out: Tensor = self.fc(F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))
        return out


def network(width: int, image: Tensor, share: float) -> ResNet18:
    """Norms that fit their data, as after training; of a share of the units in each, far from zero.

    Such a unit hardly varies: a bias in disguise, whose mean dwarfs its deviation.
    """
    model = ResNet18(width)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over what is seen
    with torch.no_grad():
        model.train()(image)
        for norm in norms:
            some = int(share * norm.num_features)
            norm.weight[:some] = 1e-4
            norm.bias[:some] = 10.0
    return model.eval()


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """The median and its 95 % interval: the order statistics that a fair coin puts around it."""
    n, ordered = len(ratios), sorted(ratios)
    below, tail = 0, 0.5**n
    while tail + math.comb(n, below + 1) * 0.5**n <= 0.025:
        below += 1
        tail += math.comb(n, below) * 0.5**n
    return figures.median(ordered), ordered[below], ordered[n - 1 - below]


def clocked(run: Callable[[Tensor], object], image: Tensor) -> tuple[float, float]:
    """CPU seconds of the whole process, and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    run(image)
    return time.process_time() - cpu, time.perf_counter() - wall


def measured(model: nn.Module, image: Tensor, pairs: int) -> Row:
    """Plain and observed passes of one network, by turns."""
    groups = trace(model, {"image": image[:2]})
    observed, observers = observe(groups)
    plain_s, cpu, wall = [], [], []
    with torch.inference_mode():
        for turn in range(WARM_UP + pairs):
            a, b = clocked(model, image), clocked(observed, image)
            if turn >= WARM_UP:
                plain_s.append(a[0])
                cpu.append(b[0] / a[0])
                wall.append(b[1] / a[1])
    totals = [observer.total() for observer in observers.values()]
    twice = sum(total.shifted for total in totals) / sum(total.measured for total in totals)
    units = sum(group.size for group in groups)
    return Row(figures.median(plain_s), interval(cpu), interval(wall), twice, units, len(observers))


def main() -> int:
    """Prints the table; 1 if the network as it is surely costs more than the goal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--width", type=int, default=64, help="channels of the first layer; 64 is ResNet-18")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    image = torch.randn(chosen.batch, 3, chosen.size, chosen.size)
    print(f"batch {chosen.batch}, {chosen.size} px, {chosen.pairs} pairs A B A B, torch {torch.__version__}")
    print("ratio: observed over plain pass, median [95 % interval] over pairs\n")
    titles = ("threads", "planted", "measured twice", "plain CPU s", "CPU ratio", "wall ratio")
    print("{:>7} {:>7} {:>14} {:>11}  {:22} {}".format(*titles))
    held = True
    for threads in chosen.threads:
        torch.set_num_threads(threads)
        rows = []
        for share in PLANTED:
            row = measured(network(chosen.width, image, share), image, chosen.pairs)
            rows.append(row)
            print(
                f"{threads:7} {share:7.0%} {row.twice:14.1%} {row.plain_s:11.3f}  "
                f"{shown(row.cpu):22} {shown(row.wall)}",
                flush=True,
            )
        held &= rows[0].cpu[1] <= GOAL
        first = rows[0]
        word = "holds" if first.cpu[2] <= GOAL else "is broken" if first.cpu[1] > GOAL else "cannot be told"
        print(f"at most {GOAL}x in CPU time, {first.units} units at {first.values} values: {word}.\n")
    return 0 if held else 1


def shown(ratio: tuple[float, float, float]) -> str:
    return f"{ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
