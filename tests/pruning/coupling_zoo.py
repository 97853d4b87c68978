"""Models whose channels are moved, joined, gated and multiplied in the ways that users write."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import nn
from torch.nn import functional as F

from tests.pruning.channel_zoo import Head, conv


def ignoring(model: nn.Module, removed: Mapping[str, Mapping[str, list[int]]]) -> nn.Module:
    """The wide model, in which every layer multiplies the removed channels by zero."""
    quiet = deepcopy(model)
    for name, sides in removed.items():
        layer = quiet.get_submodule(name)
        if "in" not in sides or not hasattr(layer, "weight"):
            continue
        weight = layer.weight.data
        for channel in sides["in"]:
            groups = getattr(layer, "groups", 1)
            if getattr(layer, "transposed", False):
                weight[channel] = 0
            elif groups == 1:
                weight[:, channel] = 0
            else:
                for row in range(len(weight)):
                    first = row // (len(weight) // groups) * weight.shape[1]
                    if 0 <= channel - first < weight.shape[1]:
                        weight[row, channel - first] = 0
    return quiet


class LinearView(Head):
    """A linear layer whose outputs become maps."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.wide = conv(3, 16), nn.Linear(16, 32 * 4)
        self.up, self.last = nn.ConvTranspose2d(32, 24, 2, stride=2), conv(24, 16)

    def forward(self, x):
        x = F.relu(self.wide(F.relu(self.stem(x)).mean((2, 3)))).view(len(x), -1, 2, 2)
        return self.head(F.relu(self.last(F.relu(self.up(x)))))


class FlatJoin(nn.Module):
    """Two maps of different sizes, flattened and joined."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(3, 16), conv(3, 24)
        self.fc1, self.fc = nn.Linear(16 * 16 + 24 * 4, 40), nn.Linear(40, 3)

    def forward(self, x):
        one = F.adaptive_max_pool2d(F.relu(self.a(x)), 4).flatten(1)
        two = F.adaptive_max_pool2d(F.relu(self.b(x)), 2).flatten(1)
        return self.fc(F.relu(self.fc1(torch.cat([one, two], 1))))


class Gated(Head):
    """A map times a mask of one channel, or times one number for each image or channel."""

    def __init__(self, kind: str) -> None:
        super().__init__(16)
        self.kind = kind
        self.stem, self.map, self.last = conv(3, 16), conv(16, 32), conv(32, 16)
        self.mask, self.number = nn.Conv2d(16, 1, 1), nn.Linear(16, 1)
        self.channel = nn.Linear(16, 32)

    def gate(self, x):
        pooled = x.mean((2, 3))
        match self.kind:
            case "mask":
                return self.mask(x).sigmoid()
            case "expanded":
                return self.mask(x).sigmoid().expand(-1, 32, -1, -1)
            case "number":
                return self.number(pooled).sigmoid()[:, :, None, None]
            case _:
                return self.channel(pooled).sigmoid().view(len(x), -1, 1, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        return self.head(F.relu(self.last(self.gate(x) * self.map(x) * 2)))


class Queries(nn.Module):
    """Four query heads on two key and value heads, with rotary positions."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.num_heads, self.kv_heads, self.width = kind, 4, 2, 8
        self.embed, self.norm = nn.Linear(24, 16), nn.LayerNorm(16)
        self.q, self.k, self.v = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16)
        self.out, self.fc = nn.Linear(32, 16), nn.Linear(16, 3)
        angles = torch.arange(8)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001]).repeat(2)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    def turned(self, x):
        one, other = x.chunk(2, -1)
        return x * self.cosine + torch.cat([-other, one], -1) * self.sine

    def forward(self, x):
        x = self.embed(x.movedim(1, 2).flatten(2))
        tokens, y = x.shape[1], self.norm(x)
        q, k, v = (
            layer(y).view(len(x), tokens, -1, self.width).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        q, k = self.turned(q), self.turned(k)
        times = q.shape[1] // k.shape[1]
        match self.kind:
            case "interleaved":
                k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
            case "repeated":
                k, v = k.repeat(1, times, 1, 1), v.repeat(1, times, 1, 1)
            case "expanded":
                k, v = (
                    t[:, :, None].expand(-1, -1, times, -1, -1).reshape(len(x), -1, tokens, 8)
                    for t in (k, v)
                )
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kind == "by torch")
        return self.fc((x + self.out(y.transpose(1, 2).flatten(2))).mean(1))


class Bilinear(nn.Module):
    """The outer product of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv(3, 16), conv(16, 16), conv(16, 16)
        self.fc = nn.Linear(256, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        a, b = self.a(x).flatten(2), self.b(x).flatten(2)
        return self.fc((a @ b.transpose(1, 2)).flatten(1) / 64)


class TrainingHead(Head):
    """A second head that only training uses."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.a, self.aux = conv(3, 32), conv(32, 16), nn.Linear(32, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.head(F.relu(self.a(x)))
        return y + 0.3 * self.aux(x.mean((2, 3))) if self.training else y


class Ghost(Head):
    """Half of the channels by a cheap depthwise convolution, and a slice of both halves."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.first, self.last = conv(3, 16), conv(16, 12), conv(24, 16)
        self.cheap = conv(12, 12, groups=12)

    def forward(self, x):
        x = F.relu(self.first(F.relu(self.stem(x))))
        x = torch.cat([x, F.relu(self.cheap(x))], 1)
        return self.head(F.relu(self.last(x[:, : x.shape[1]])))


class Moved(Head):
    """Sixteen channels that are shuffled, split or rearranged before the last convolution."""

    def __init__(self, kind: str) -> None:
        super().__init__(16)
        self.kind = kind
        self.stem, self.a = conv(3, 16), conv(16, 16)
        inner = {"pixels": 4, "unpixels": 64, "glu": 8, "chunk": 8, "half": 8, "windows": 144,
                 "tensor split": 8, "input": 19, "both ends": 20, "maxout": 8}  # fmt: skip
        self.last = conv(inner.get(kind, 16), 16)

    def moved(self, x, source):  # noqa: C901 - one case a kind
        batch, _, height, width = x.shape
        match self.kind:
            case "shuffle":
                x = x.view(batch, 4, -1, height, width).transpose(1, 2)
                return x.reshape(batch, -1, height, width)
            case "torch shuffle":
                return F.channel_shuffle(x, 4)
            case "pixels":
                return F.pixel_shuffle(x, 2)
            case "unpixels":
                return F.pixel_unshuffle(x, 2)
            case "glu":
                return F.glu(x, 1)
            case "chunk":
                value, gate = x.chunk(2, 1)
                return value * gate.tanh()
            case "tensor split":
                value, gate = torch.tensor_split(x, 2, 1)
                return value * gate.tanh()
            case "half":
                half = x.shape[1] // 2
                return x[:, :half] + x[:, half:]
            case "maxout":
                return torch.maximum(x[:, ::2], x[:, 1::2])
            case "windows":
                return F.unfold(x, 3, padding=1).view(batch, -1, height, width)
            case "input":
                return torch.cat([source, x], 1)
            case "both ends":
                return F.pad(x, (0, 0, 0, 0, 2, 2))
            case "tokens":
                x = x.flatten(2).permute(0, 2, 1).roll(1, 1).flip(1)
                return x.transpose(1, 2).unflatten(2, (height, width))
            case "assigned":
                y = torch.zeros_like(x)
                y[:, :, 1:] = x[:, :, :-1]
                return y
            case "stacked":
                return torch.stack([x, x.sigmoid()], 0).sum(0)
            case "in place":
                x += 1
                x[:, :, 0].mul_(2.0)
                return x.clamp_(-1, 2)
            case _:
                raise ValueError(self.kind)

    def forward(self, x):
        return self.head(F.relu(self.last(self.moved(F.relu(self.a(F.relu(self.stem(x)))), x))))
