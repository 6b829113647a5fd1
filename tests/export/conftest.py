"""Small real networks of every shape that quantization treats in its own way, each exported once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from support.int8_files import calibrate
from torch import Tensor, nn
from torch.nn import functional as F

from deadweight.export.quantization.calibrate import Ranges
from deadweight.export.to_onnx import to_onnx

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Net:
    """A module, its exported file, and a few batches of inputs for it."""

    module: nn.Module
    path: Path
    example: Batch
    batches: list[Batch]

    @property
    def ranges(self) -> Ranges:
        return calibrate(self.path, self.batches)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 48)
        self.fc2 = nn.Linear(48, 32)
        self.fc3 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))
        return out


class Block(nn.Module):
    """conv - norm - ReLU - conv - norm, added to a shortcut, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        total: Tensor = F.relu(out + self.shortcut(x))
        return total


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.same = Block(16, 16)
        self.wider = Block(16, 32)
        self.fc = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.stem(image))), 2)
        x = F.adaptive_avg_pool2d(self.wider(self.same(x)), 1)
        out: Tensor = self.fc(x.flatten(1))
        return out


class Inverted(nn.Module):
    """MobileNetV2's block: expand, depthwise, project, with ReLU6 and a linear end."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 4 * channels
        self.expand = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.project = nn.Conv2d(wide, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu6(self.bn1(self.expand(x)))
        out = F.relu6(self.bn2(self.depthwise(out)))
        total: Tensor = x + self.bn3(self.project(out))
        return total


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.block1 = Inverted(16)
        self.block2 = Inverted(16)
        self.fc = nn.Linear(16, 5)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.block2(self.block1(F.relu6(self.bn(self.stem(image)))))
        return {"logits": self.fc(x.mean(dim=(2, 3))), "features": x}


class Joined(nn.Module):
    """A U-Net of one step: a skip over a concat, a transposed convolution, a map as output."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(2, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.up_bn = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        high = F.relu(self.down(torch.cat([left, right], dim=1)))
        low = F.relu(self.up_bn(self.up(F.relu(self.deep(high)))))
        joined = self.head(torch.cat([high, low], dim=1))
        return joined, joined.amax(dim=(2, 3))


class Attentive(nn.Module):
    """One transformer layer: layer norm, attention, GELU, linear layers over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(tokens)).chunk(3, dim=-1)
        weights = torch.softmax(query @ key.transpose(1, 2) / 4.0, dim=-1)
        x = tokens + self.out(weights @ value)
        out: Tensor = x + self.mlp(x)
        return out


NETS: dict[str, tuple[type[nn.Module], dict[str, tuple[int, ...]]]] = {
    "mlp": (Mlp, {"x": (64,)}),
    "residual": (Residual, {"image": (1, 28, 28)}),
    "depthwise": (Depthwise, {"image": (3, 16, 16)}),
    "joined": (Joined, {"left": (1, 8, 8), "right": (1, 8, 8)}),
    "attentive": (Attentive, {"tokens": (6, 16)}),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(3)
    module = NETS[name][0]()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):  # as after training: no norm is the identity
            assert part.running_mean is not None
            assert part.running_var is not None
            part.running_mean.uniform_(-0.2, 0.2)
            part.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.2, 0.2)
    return module.eval()


def inputs(name: str, samples: int, seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(samples, *shape, generator=generator) for key, shape in NETS[name][1].items()}


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Net]:
    """Gives a network by its name in NETS."""
    directory = tmp_path_factory.mktemp("nets")

    @cache
    def get(name: str) -> Net:
        module, example = build(name), inputs(name, 2, 0)
        path = directory / f"{name}.onnx"
        to_onnx(module, example, path)
        return Net(module, path, example, [inputs(name, 20, 1), inputs(name, 7, 2)])

    return get


@dataclass(frozen=True)
class Digits:
    """An MLP trained on scikit-learn's digits, with samples it has not seen."""

    net: Net
    images: Tensor
    labels: Tensor


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    pixels, targets = load_digits(return_X_y=True)
    images, labels = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(targets)
    torch.manual_seed(0)
    module = Mlp()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(30):
        for chosen in torch.randperm(1200).reshape(-1, 60):
            optimizer.zero_grad()
            F.cross_entropy(module(images[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    path = tmp_path_factory.mktemp("digits") / "digits.onnx"
    to_onnx(module.eval(), {"x": images[:2]}, path)
    net = Net(module, path, {"x": images[:2]}, [{"x": images[:100]}, {"x": images[100:200]}])
    return Digits(net, images[1200:], labels[1200:])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
