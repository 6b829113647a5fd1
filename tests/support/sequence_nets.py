"""Small real networks with attention, embeddings or recurrence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """One linear layer for q, k and v; heads and their width are attributes; the scale is written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).reshape(b, n, -1))
        return out


class Vit(nn.Module):
    """Patches, a class token, positions, layer norms, attention, an MLP, layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, 24))
        self.position = nn.Parameter(torch.zeros(1, 5, 24))
        self.norm1, self.norm2 = nn.LayerNorm(24), nn.LayerNorm(24)
        self.attention = Attention(24, 4)
        self.gamma = nn.Parameter(torch.ones(24))
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.head = nn.Linear(24, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        x = x + self.gamma * self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        out: Tensor = self.head(x[:, 0])
        return out


class Llama(nn.Module):
    """Tied embeddings, RMS norm by hand, grouped-query heads, rotary positions, a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 32)
        self.norm = nn.Parameter(torch.ones(32))
        self.q, self.k = nn.Linear(32, 32, bias=False), nn.Linear(32, 16, bias=False)
        self.v, self.o = nn.Linear(32, 16, bias=False), nn.Linear(32, 32, bias=False)
        self.gate, self.up = nn.Linear(32, 48, bias=False), nn.Linear(32, 48, bias=False)
        self.down = nn.Linear(48, 32, bias=False)
        self.head = nn.Linear(32, 30, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("frequency", 10000.0 ** (-torch.arange(0, 8, 2) / 8))

    def forward(self, tokens: Tensor) -> Tensor:
        b, n = tokens.shape
        x = self.embed(tokens)
        h = self.norm * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        angles = torch.outer(torch.arange(n).float(), self.get_buffer("frequency")).repeat(1, 2)
        q, k, v = (part(h).view(b, n, -1, 8).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = (z * angles.cos() + self.turned(z) * angles.sin() for z in (q, k))
        k, v = (z[:, :, None].expand(-1, -1, 2, -1, -1).reshape(b, 4, n, 8) for z in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, n, -1))
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        out: Tensor = self.head(x)
        return out

    @staticmethod
    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat([-second, first], -1)


class Encoder(nn.Module):
    """torch's own encoder layer and multi-head attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.3, batch_first=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 3)

    def forward(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layer(self.embed(steps))
        y, weights = self.attention(x, x, x)
        return self.out(y + x), weights


class Recurrent(nn.Module):
    """A bidirectional LSTM of two layers, then a GRU whose last state is read."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.lstm = nn.LSTM(8, 10, 2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(20, 12, batch_first=True)
        self.fc = nn.Linear(12, 3)

    def forward(self, steps: Tensor) -> Tensor:
        x, _ = self.lstm(F.relu(self.embed(steps)))
        _, last = self.gru(x)
        out: Tensor = self.fc(last[-1])
        return out


class Linked(nn.Module):
    """Linear attention by einsum, a gated unit, token mixing, weight normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 12))
        self.q, self.k, self.v = nn.Linear(12, 10), nn.Linear(12, 10), nn.Linear(12, 14)
        self.back = nn.Linear(14, 12)
        self.gated = nn.Linear(12, 16)
        self.tokens = nn.Linear(9, 9)
        self.out = nn.Linear(8, 3)

    def forward(self, steps: Tensor) -> Tensor:
        x = self.embed(steps)
        q, k = F.relu(self.q(x)), F.relu(self.k(x))
        x = x + self.back(torch.einsum("bnd,bmd,bme->bne", q, k, self.v(x)))
        y = F.glu(self.gated(x), -1)
        out: Tensor = self.out(y + self.tokens(y.transpose(1, 2)).transpose(1, 2))
        return out
