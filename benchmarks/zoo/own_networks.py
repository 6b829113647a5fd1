"""Networks of the zoo that no library holds: what boards run, and what breaks pruners."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _conv(before: int, after: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.SiLU())


class Lstm(nn.Module):
    """Two bidirectional layers over a sequence of features, as for speech or sensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(40, 128)
        self.lstm = nn.LSTM(128, 192, 2, batch_first=True, bidirectional=True, dropout=0.1)
        self.out = nn.Linear(384, 30)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(F.relu(self.embed(x)))
        out: Tensor = self.out(y)
        return out


class Gru(nn.Module):
    """A convolution over time, two GRU layers, and the last state."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(40, 128, 5, padding=2)
        self.gru = nn.GRU(128, 256, 2, batch_first=True)
        self.out = nn.Linear(256, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        _, last = self.gru(y)
        out: Tensor = self.out(last[-1])
        return out


class PilotNet(nn.Module):
    """Bojarski et al. 2016, "End to End Learning for Self-Driving Cars", figure 4."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.BatchNorm2d(3)]
        for before, after, kernel, stride in (
            (3, 24, 5, 2),
            (24, 36, 5, 2),
            (36, 48, 5, 2),
            (48, 64, 3, 1),
            (64, 64, 3, 1),
        ):
            layers += [nn.Conv2d(before, after, kernel, stride), nn.ELU()]
        self.features = nn.Sequential(*layers)
        self.fc1, self.fc2, self.fc3 = nn.Linear(1152, 100), nn.Linear(100, 50), nn.Linear(50, 10)
        self.steer = nn.Linear(10, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x).flatten(1)
        out: Tensor = self.steer(F.elu(self.fc3(F.elu(self.fc2(F.elu(self.fc1(y)))))))
        return out


class PixelUNet(nn.Module):
    """A U-Net that goes up by pixel shuffle, with skips by concat."""

    def __init__(self) -> None:
        super().__init__()
        widths = (24, 48, 96, 192)
        self.downs = nn.ModuleList(
            nn.Sequential(_conv(before, after), _conv(after, after))
            for before, after in zip((3, *widths), widths, strict=False)
        )
        self.ups = nn.ModuleList(nn.Conv2d(below, 4 * above, 1) for above, below in pairwise(widths))
        self.joins = nn.ModuleList(_conv(2 * width, width) for width in widths[:-1])
        self.out = nn.Conv2d(widths[0], 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for down in self.downs:
            x = down(x if not skips else F.max_pool2d(x, 2))
            skips.append(x)
        for number in range(len(self.joins) - 1, -1, -1):
            up = F.pixel_shuffle(self.ups[number](x), 2)
            x = self.joins[number](torch.cat([up, skips[number]], 1))
        out: Tensor = self.out(x)
        return out


class _Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.cv2(self.cv1(x))
        return out


class _C2f(nn.Module):
    """A convolution whose halves go different ways and are joined again."""

    def __init__(self, before: int, after: int, count: int = 1) -> None:
        super().__init__()
        self.cv1 = _conv(before, after, 1)
        self.cv2 = _conv((2 + count) * (after // 2), after, 1)
        self.m = nn.ModuleList(_Bottleneck(after // 2) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.cv1(x).chunk(2, 1))
        parts.extend(block(parts[-1]) for block in self.m)
        out: Tensor = self.cv2(torch.cat(parts, 1))
        return out


class _Sppf(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = _conv(width, width // 2, 1), _conv(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pools = [self.cv1(x)]
        for _ in range(3):
            pools.append(F.max_pool2d(pools[-1], 5, 1, 2))
        out: Tensor = self.cv2(torch.cat(pools, 1))
        return out


class _Detect(nn.Module):
    """Boxes as distributions over distances, classes, on three scales; decoded only at inference."""

    def __init__(self, widths: tuple[int, ...], classes: int = 20, bins: int = 16) -> None:
        super().__init__()
        self.bins, self.classes = bins, classes
        self.boxes = nn.ModuleList(
            nn.Sequential(_conv(w, 64), _conv(64, 64), nn.Conv2d(64, 4 * bins, 1)) for w in widths
        )
        self.labels = nn.ModuleList(nn.Sequential(_conv(w, 64), nn.Conv2d(64, classes, 1)) for w in widths)
        self.dfl = nn.Conv2d(bins, 1, 1, bias=False)

    def forward(self, maps: list[Tensor]) -> Tensor | list[Tensor]:
        heads = [
            torch.cat([box(x), label(x)], 1)
            for x, box, label in zip(maps, self.boxes, self.labels, strict=True)
        ]
        if self.training:
            return heads
        flat = torch.cat([x.view(x.shape[0], 4 * self.bins + self.classes, -1) for x in heads], 2)
        box, label = torch.split(flat, [4 * self.bins, self.classes], 1)
        b, _, a = box.shape
        distances = self.dfl(box.view(b, 4, self.bins, a).transpose(2, 1).softmax(1)).view(b, 4, a)
        near, far = distances.chunk(2, 1)
        return torch.cat([(far - near) / 2, far + near, label.sigmoid()], 1)


class YoloLike(nn.Module):
    """A detector with the blocks of YOLOv8: C2f, SPPF, a path up and down, a decoupled head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, 3, 2), _conv(16, 32, 3, 2), _C2f(32, 32))
        self.stage3 = nn.Sequential(_conv(32, 64, 3, 2), _C2f(64, 64, 2))
        self.stage4 = nn.Sequential(_conv(64, 128, 3, 2), _C2f(128, 128, 2))
        self.stage5 = nn.Sequential(_conv(128, 256, 3, 2), _C2f(256, 256), _Sppf(256))
        self.up4, self.up3 = _C2f(384, 128), _C2f(192, 64)
        self.down3, self.down4 = _conv(64, 64, 3, 2), _conv(128, 128, 3, 2)
        self.mix4, self.mix5 = _C2f(192, 128), _C2f(384, 256)
        self.detect = _Detect((64, 128, 256))

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        three = self.stage3(self.stem(x))
        four = self.stage4(three)
        five = self.stage5(four)
        four = self.up4(torch.cat([F.interpolate(five, scale_factor=2.0), four], 1))
        small = self.up3(torch.cat([F.interpolate(four, scale_factor=2.0), three], 1))
        middle = self.mix4(torch.cat([self.down3(small), four], 1))
        large = self.mix5(torch.cat([self.down4(middle), five], 1))
        out: Tensor | list[Tensor] = self.detect([small, middle, large])
        return out


class TiedLanguageModel(nn.Module):
    """The embedding is also the last layer's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(2000, 256)
        self.lstm = nn.LSTM(256, 256, 2, batch_first=True)
        self.head = nn.Linear(256, 2000)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(self.embed(x))
        out: Tensor = self.head(y)
        return out


class CalledTwice(nn.Module):
    """One block is run twice, with its own weights, on the way down."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = _conv(3, 48, 5, 2), nn.Sequential(_conv(48, 48), _conv(48, 48, groups=4))
        self.wide = _conv(48, 96, 3, 2)
        self.fc = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = y + self.block(y)
        y = y + self.block(F.avg_pool2d(y, 3, 1, 1))
        out: Tensor = self.fc(self.wide(y).mean((2, 3)))
        return out


class ConvAutoencoder(nn.Module):
    """Channels meet a flatten, a bottleneck of linear layers, and a view back to channels."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(_conv(3, 32, 3, 2), _conv(32, 64, 3, 2), _conv(64, 64, 3, 2))
        self.fc1, self.fc2 = nn.Linear(64 * 256, 128), nn.Linear(128, 64 * 256)
        self.up1 = nn.ConvTranspose2d(64, 32, 2, 2)
        self.up2 = nn.ConvTranspose2d(32, 16, 2, 2)
        self.up3 = nn.ConvTranspose2d(16, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        code = F.relu(self.fc1(self.down(x).flatten(1)))
        y = self.fc2(code).view(-1, 64, 16, 16)
        out: Tensor = self.up3(F.relu(self.up2(F.relu(self.up1(y)))))
        return out


class SpatialAttention(nn.Module):
    """A mask of one channel, made from the mean and the maximum over all of them (Woo et al. 2018, CBAM)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.last = _conv(3, 64, 3, 2), _conv(64, 128, 3, 2), _conv(128, 128, 3, 2)
        self.mask = nn.Conv2d(2, 1, 7, padding=3)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mid(self.stem(x))
        both = torch.cat([y.mean(1, keepdim=True), y.amax(1, keepdim=True)], 1)
        y = self.last(y * self.mask(both).sigmoid())
        out: Tensor = self.fc(y.mean((2, 3)))
        return out


class TorchEncoder(nn.Module):
    """torch's own transformer encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(192, 3, 768, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
        self.out = nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.encoder(x).mean(1))
        return out


class HardCoded(nn.Module):
    """Widths are written into forward: a view, a split, a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = _conv(3, 32, 3, 4), _conv(32, 96, 3, 2)
        self.left, self.right = _conv(64, 64), _conv(32, 64)
        self.fc1, self.fc2 = nn.Linear(64 * 64, 256), nn.Linear(192, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.wide(self.stem(x))
        left, right = torch.split(y, [64, 32], 1)
        y = F.avg_pool2d(self.left(left) * self.right(right), 2)
        y = F.relu(self.fc1(y.reshape(-1, 64 * 64)))
        out: Tensor = self.fc2(y[:, :192])
        return out
