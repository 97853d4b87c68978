"""Attention in its many forms; every row of an image is a token."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Multi-head attention on one joint projection, as timm writes it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def bias(self, scores):
        return scores

    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = self.bias(q @ k.transpose(-2, -1) * self.scale)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)
        return self.proj(y)


class Perceptron(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """Two projections, one of them the gate of the other."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class GeGLU(nn.Module):
    """One projection, chunked into value and gate."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x):
        value, gate = self.up(x).chunk(2, -1)
        return self.down(value * F.gelu(gate))


class Experts(nn.Module):
    """A mixture of all experts, weighed by a router."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, 3)
        self.experts = nn.ModuleList(Perceptron(width, hidden) for _ in range(3))

    def forward(self, x):
        weights = self.router(x).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], -2)
        return (weights.unsqueeze(-1) * outputs).sum(-2)


class RootMeanSquareNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Encoder(nn.Module):
    """Embed rows, one block of attention and perceptron, mean over the tokens."""

    attention, perceptron, norm = Attention, Perceptron, nn.LayerNorm

    def __init__(self, input_shape, num_classes, width=24, heads=3, hidden=44) -> None:
        super().__init__()
        self.embed = nn.Linear(input_shape[0] * input_shape[2], width)
        self.place = nn.Parameter(torch.randn(1, input_shape[1], width) * 0.1)
        self.norm1, self.norm2 = self.norm(width), self.norm(width)
        self.attend = self.attention(width, heads)
        self.mlp = self.perceptron(width, hidden)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.embed(x.transpose(1, 2).flatten(2)) + self.place
        x = x + self.attend(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.fc(x.mean(1))


class VisionTransformer(nn.Module):
    """Patches by a strided convolution, class token, learnt positions, layer scale."""

    def __init__(self, input_shape, num_classes, width=24, heads=3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(input_shape[0], width, 2, stride=2)
        tokens = (input_shape[1] // 2) * (input_shape[2] // 2)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        self.place = nn.Parameter(torch.randn(1, tokens + 1, width) * 0.1)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.mlp = Attention(width, heads), Perceptron(width, 44)
        self.scale = nn.Parameter(torch.full((width,), 0.5))
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        x = x + self.scale * self.attend(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.fc(self.norm(x)[:, 0])


class LinearBias(Attention):
    """Distances, weighed by head, are added to the scores (ALiBi)."""

    def bias(self, scores):
        place = torch.arange(scores.shape[-1], device=scores.device)
        slopes = 2.0 ** -torch.arange(1, self.heads + 1, device=scores.device)
        return scores - slopes[:, None, None] * (place[:, None] - place[None]).abs()


class LearntBias(Attention):
    """A table of relative positions (Swin, BEiT, T5)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.table = nn.Parameter(torch.randn(15, heads) * 0.1)
        place = torch.arange(8)
        self.register_buffer("index", place[:, None] - place[None] + 7)

    def bias(self, scores):
        return scores + self.table[self.index].permute(2, 0, 1)


def causal(size: int, low: float) -> torch.Tensor:
    return torch.triu(torch.full((size, size), low), 1)


class InfinityMask(Attention):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.register_buffer("mask", causal(8, float("-inf")))

    def bias(self, scores):
        return scores + self.mask


class SmallestMask(InfinityMask):
    """The smallest float32 in place of infinity, as transformers writes it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.mask = causal(8, torch.finfo(torch.float32).min)


class FilledMask(Attention):
    def bias(self, scores):
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(later, -1e9)


class GroupedQueries(nn.Module):
    """Four heads of queries share two heads of keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.size = 6
        self.q, self.k, self.v = (nn.Linear(width, self.size * n) for n in (4, 2, 2))
        self.proj = nn.Linear(4 * self.size, width)

    def turned(self, x):
        return x

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (
            f(x).view(batch, tokens, -1, self.size).transpose(1, 2)
            for f in (self.q, self.k, self.v)
        )
        q, k = self.turned(q), self.turned(k)
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.proj(y.transpose(1, 2).flatten(2))


class Rotary(GroupedQueries):
    """Halves of a head turn with the position of the token."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        angle = torch.arange(8)[:, None] * torch.tensor([1.0, 0.1, 0.01])[None]
        self.register_buffer("cos", angle.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angle.sin().repeat(1, 2), persistent=False)

    def turned(self, x):
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin


class LinearAttention(nn.Module):
    """Keys times values first: no softmax over tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for f in (self.q, self.k, self.v))  # fmt: skip
        q, k = F.elu(q) + 1, F.elu(k) + 1
        y = q @ (k.transpose(-1, -2) @ v)
        norm = q @ k.sum(-2).unsqueeze(-1)
        return self.proj((y / norm).transpose(1, 2).flatten(2))


class TorchAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x):
        return self.inner(x, x, x, need_weights=False)[0]
