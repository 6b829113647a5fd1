"""Small networks of blocks: residual ones with and without a projection, encoder layers, plain stacks."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Basic(nn.Module):
    """A residual block as torchvision writes it: one ReLU for two places, sums in place, a projection."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride > 1 or channels != out:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out: Tensor = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.relu(out)  # type: ignore[no-any-return]


class Stages(nn.Module):
    """Two stages of residual blocks; the second begins with one that changes the shape."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1 = nn.Sequential(Basic(8, 8), Basic(8, 8))
        self.layer2 = nn.Sequential(Basic(8, 16, 2), Basic(16, 16))
        self.fc = nn.Linear(16, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.stem(image))))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class Layer(nn.Module):
    """An encoder layer, norm first; it takes a mask by name, and returns a tuple."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, *, mask: Tensor | None = None, hidden: Tensor) -> tuple[Tensor, None]:
        del mask
        x = hidden + self.mix(self.norm1(hidden)).roll(1, 1)
        return x + self.down(F.gelu(self.up(self.norm2(x)))), None


class Encoder(nn.Module):
    """Layers that return tuples, and a norm after the last."""

    def __init__(self, layers: int = 3, width: int = 8) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x, _ = layer(hidden=x, mask=None)
        out: Tensor = self.head(self.norm(x).mean(1))
        return out


class Unlike(nn.Module):
    """Residual blocks beside those of their class that change the shape and have no shortcut."""

    class Inverted(nn.Module):
        def __init__(self, channels: int, out: int) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(channels, 6, 1), nn.ReLU(), nn.Conv2d(6, out, 1))
            self.sums = channels == out

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return x + y if self.sums else y

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = self.Inverted(3, 5), self.Inverted(5, 5), self.Inverted(5, 4)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.c(self.b(self.a(image))).mean((2, 3))
        return out


class Asking(nn.Module):
    """Its forward asks the first of two blocks for more than its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Basic(3, 3), Basic(3, 3)

    def forward(self, image: Tensor) -> Tensor:
        x: Tensor = self.second(self.first(F.relu(image)))
        return x.mean((2, 3)) + self.first.conv1.weight.mean()


class Shared(nn.Module):
    """One block that is called twice, under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Basic(4, 4)
        self.again = self.first
        self.third = Basic(4, 4)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.third(self.again(self.first(F.relu(image)))).mean((2, 3))
        return out
