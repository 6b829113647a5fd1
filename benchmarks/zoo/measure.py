"""What both tools' rows of the zoo have in common: the network made lively, its costs, and comparisons."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.zoo.networks import Network


def lively(network: Network) -> nn.Module:
    """The network with random parameters everywhere and batch norm's statistics from a batch; in eval."""
    model = network.build()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(drawn * (1.5 / max(parameter[0].numel(), 1)) ** 0.5)
            else:
                parameter.copy_(0.1 * drawn if name.endswith("bias") else 1 + 0.25 * drawn)
        norms = [one for one in model.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()  # alone: a detector's training asks for targets
        if norms:
            model(*network.example(8 if len(network.shape) < 4 else 2, seed=2).values())
        for norm in norms:
            norm.momentum = 0.1
    return model.eval()


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def floats(outputs: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(outputs)
    return [one for one in leaves if isinstance(one, Tensor) and one.is_floating_point()]


def relative(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    return float((expected.double() - found.double()).abs().max() / expected.double().abs().max())


def batch_error(small: nn.Module, network: Network) -> float:
    """How far the last of three samples differs from itself alone: 0 where samples do not meet."""
    three = network.example(3, seed=4)
    with torch.no_grad():
        together = small(*three.values())
        last = small(*(value[2:] for value in three.values()))
    if isinstance(together, list) and len(together) == 3:  # one result an image
        pairs = zip(floats(together[2:]), floats(last), strict=True)
        return max(relative(one, alone) for one, alone in pairs)
    pairs = zip(floats(together), floats(last), strict=True)
    return max(relative(one[2:], alone) for one, alone in pairs if one.dim() and len(one) == 3)


def forward_pass_s(model: nn.Module, network: Network) -> float:
    """CPU seconds of one pass of one sample: the median of five, each over as many passes as take 50 ms."""
    one, times, passes = network.example(1), list[float](), 1
    with torch.no_grad():
        while len(times) < 5:
            started = time.process_time()
            for _ in range(passes):
                model(*one.values())
            took = time.process_time() - started
            if took < 0.05:
                passes *= 2
            else:
                times.append(took / passes)
    return statistics.median(times)


@dataclass
class Beside:
    """What torch.export takes, or the most memory that was taken on top before, between and after it.

    Never both: handing freed memory back to the system, so that it is counted, takes time.
    """

    memory: bool
    seconds: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    resident: int = 0

    def begin(self) -> None:
        """Memory is watched from here on."""
        if self.memory:
            self.resident = _reset_peak()

    def end(self) -> None:
        """Until here."""
        if self.memory:
            self.peaks.append(_status("VmHWM") - self.resident)

    def most(self) -> int:
        """Bytes."""
        self.end()
        return max(self.peaks)


@contextmanager
def exporting(*, memory: bool = False) -> Iterator[Beside]:
    """Takes the time of torch.export, or leaves its memory out."""
    beside = Beside(memory)
    own, module = torch.export.export, torch.export.ExportedProgram.module

    def timed(call: Any) -> Any:
        def inner(*args: Any, **settings: Any) -> Any:
            beside.end()
            started = time.process_time()
            try:
                return call(*args, **settings)
            finally:
                beside.seconds.append(time.process_time() - started)
                beside.begin()

        return inner

    torch.export.export, torch.export.ExportedProgram.module = timed(own), timed(module)  # type: ignore
    beside.begin()
    try:
        yield beside
    finally:
        torch.export.export, torch.export.ExportedProgram.module = own, module  # type: ignore


def own_bytes(model: nn.Module) -> int:
    """Parameters and buffers."""
    return sum(one.numel() * one.element_size() for one in (*model.parameters(), *model.buffers()))


def forward_bytes(model: nn.Module, example: Mapping[str, Tensor]) -> int:
    """What one forward pass of the example takes on top."""
    resident = _reset_peak()
    with torch.no_grad():
        model(*example.values())
    return _status("VmHWM") - resident


def _reset_peak() -> int:
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed and is used again would not be counted
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(field))
    return int(line.split()[1]) * 1024
