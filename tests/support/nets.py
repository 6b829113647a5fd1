"""Small real networks, one for each way in which the parts of a network hang together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Linear, ReLU as a function and as a module, dropout, flatten."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        first, second, third, classes = widths or (16, 12, 8, 4)
        self.fc1 = nn.Linear(first, second)
        self.drop = nn.Dropout(0.2)
        self.fc2 = nn.Linear(second, third)
        self.relu = nn.ReLU()
        self.fc3 = nn.Linear(third, classes)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.drop(F.relu(self.fc1(image.flatten(1))))
        out: Tensor = self.fc3(self.relu(self.fc2(hidden)))
        return out


class ResidualCnn(nn.Module):
    """Batch norm, a residual sum with a projection, pooling."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.short = nn.Conv2d(width, 2 * width, 1, stride=2)
        self.fc = nn.Linear(2 * width, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(image)))
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        x = F.relu(y + self.short(x))
        out: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


def _by_128(x: Tensor) -> Tensor:
    return x.view(-1, 128)


class Flattened(nn.Module):
    """Channels meet a linear layer through a flatten; on demand the size is written into a function."""

    def __init__(self, *, hard_coded: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.fc1 = nn.Linear(8 * 4 * 4, 10)
        self.fc2 = nn.Linear(10, 3)
        self.hard_coded = hard_coded

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(image)))), 2)
        x = _by_128(x) if self.hard_coded else x.flatten(1)
        out: Tensor = self.fc2(F.relu(self.fc1(x)))
        return out


class Separable(nn.Module):
    """Depthwise separable convolutions with a squeeze-and-excite gate."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 12, 1)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.squeeze = nn.Conv2d(12, 4, 1)
        self.excite = nn.Conv2d(4, 12, 1)
        self.project = nn.Conv2d(12, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, image: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.depthwise(F.relu6(self.expand(image)))))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = self.project(x * torch.sigmoid(gate))
        out: Tensor = self.fc(x.mean((2, 3)))
        return out


class Concatenated(nn.Module):
    """Two branches side by side, as in a dense block; batch norm after the concat."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 4, 1)
        self.norm = nn.BatchNorm2d(10)
        self.c = nn.Conv2d(10, 5, 1)
        self.fc = nn.Linear(5, 3)

    def forward(self, image: Tensor) -> Tensor:
        a = self.a(image)
        x = F.relu(self.norm(torch.cat([a, self.b(F.relu(a))], 1)))
        out: Tensor = self.fc(F.relu(self.c(x)).mean((2, 3)))
        return out


class Shuffled(nn.Module):
    """ShuffleNetV2: halves by chunk, a depthwise branch, concat, channel shuffle; three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1, groups=8),
                nn.Conv2d(8, 8, 1),
            )
            for _ in range(3)
        )
        self.fc = nn.Linear(16, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for block in self.blocks:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, block(right)], 1)
            b, c, h, w = x.shape
            x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        out: Tensor = self.fc(F.relu(x).mean((2, 3)))
        return out


class Grouped(nn.Module):
    """ResNeXt's grouped convolution, a shuffle between two of them, group norm, a grouped transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.a = nn.Conv2d(12, 24, 3, padding=1, groups=3)
        self.b = nn.Conv2d(24, 12, 1, groups=3)
        self.norm = nn.GroupNorm(3, 12)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2, groups=3)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.stem(image))
        y = F.channel_shuffle(F.leaky_relu(self.a(x)), 3)
        x = self.norm(self.b(y)) + x
        out: Tensor = self.out(F.elu(self.up(x)))
        return out


class Detector(nn.Module):
    """YOLO's C2f (chunk and concat), SPPF, upsampling with a skip, and a head of several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.cv1 = nn.Conv2d(12, 16, 1)
        self.m = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.cv2 = nn.Conv2d(32, 12, 1)
        self.reduce = nn.Conv2d(12, 6, 1)
        self.spread = nn.Conv2d(24, 12, 1)
        self.mix = nn.Conv2d(24, 12, 3, padding=1)
        self.box, self.cls = nn.Conv2d(12, 8, 1), nn.Conv2d(12, 5, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = F.silu(self.stem(image))
        parts = list(self.cv1(x).chunk(2, 1))
        for conv in self.m:
            parts.append(parts[-1] + F.silu(conv(parts[-1])))
        pools = [self.reduce(F.silu(self.cv2(torch.cat(parts, 1))))]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        y = F.max_pool2d(self.spread(torch.cat(pools, 1)), 2)
        y = F.silu(self.mix(torch.cat([F.interpolate(y, scale_factor=2.0), x], 1)))
        both = torch.cat([self.box(y), self.cls(y)], 1)
        boxes, classes = torch.split(both.flatten(2), [8, 5], 1)
        return {"boxes": boxes, "classes": classes.sigmoid()}


class PixelUNet(nn.Module):
    """Pixel shuffle and a transposed convolution on the way up, skips by concat."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(3, 8, 3, padding=1)
        self.down2 = nn.Conv2d(8, 12, 3, 2, 1)
        self.wide = nn.Conv2d(12, 32, 3, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.out = nn.Conv2d(22, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        a = F.relu(self.down1(image))
        b = F.relu(self.down2(a))
        out: Tensor = self.out(torch.cat([a, F.pixel_shuffle(self.wide(b), 2), F.relu(self.up(b))], 1))
        return out


class Auxiliary(nn.Module):
    """A head for training alone, dropout, a module called twice, a padded shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.aux = nn.Conv2d(8, 3, 1)
        self.wide = nn.Conv2d(8, 12, 3, 2, 1)
        self.drop = nn.Dropout(0.3)
        self.fc = nn.Linear(12, 3)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.stem(image))
        x = x + F.relu(self.twice(F.relu(self.twice(x))))
        y = self.wide(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        out: Tensor = self.fc(self.drop(F.relu(y).mean((2, 3))))
        return (out, self.aux(x)) if self.training else out


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """All parameters and statistics at random, so that no mistake hides behind a zero or a one; in eval."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.dim() > 1 else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * fan**-0.5)
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point():
                drawn = torch.rand(buffer.shape, generator=generator)
                buffer.copy_(drawn + 0.5 if name.endswith("running_var") else drawn)
    return model.eval()


def image(*shape: int, seed: int = 1) -> Tensor:
    """Pixels from a standard normal distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
