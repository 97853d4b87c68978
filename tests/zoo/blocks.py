"""Blocks from maps [B, C, H, W] to maps, that random networks are made of."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class AsymmetricPad(nn.Module):
    """Zeros below and on the right, as TensorFlow pads."""

    def forward(self, x):
        return F.pad(x, (0, 1, 0, 1))


class Crop(nn.Module):
    """Without the first row and the last column."""

    def forward(self, x):
        return x[:, :, 1:, :-1]


class Resize(nn.Module):
    def forward(self, x):
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class LayerNorm2d(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Scale(nn.Module):
    """A learnt factor for each channel (layer scale)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((1, width, 1, 1), 0.7))

    def forward(self, x):
        return self.gamma * x


class Gate(nn.Module):
    """Squeeze-excite, by convolutions or by linear layers and a view."""

    def __init__(self, width: int, inner: int, linear: bool) -> None:
        super().__init__()
        kind = nn.Linear if linear else lambda i, o: nn.Conv2d(i, o, 1)
        self.linear, self.reduce, self.expand = linear, kind(width, inner), kind(inner, width)

    def forward(self, x):
        pooled = x.mean((2, 3), keepdim=not self.linear)
        gate = self.expand(F.relu(self.reduce(pooled))).sigmoid()
        return x * (gate[:, :, None, None] if self.linear else gate)


class Mask(nn.Module):
    """A map of one channel times all channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mask = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x):
        return x * self.mask(x).sigmoid()


class Gated(nn.Module):
    """A layer of twice the width, halved: value times gate, or the larger of both."""

    def __init__(self, inner: int, outer: int, how: str) -> None:
        super().__init__()
        self.both, self.how = nn.Conv2d(inner, 2 * outer, 3, padding=1), how

    def forward(self, x):
        if self.how == "glu":
            return F.glu(self.both(x), 1)
        value, gate = self.both(x).chunk(2, 1)
        if self.how == "max":
            return torch.maximum(value, gate)
        return value.tanh() * gate.sigmoid()


class TwoGates(nn.Module):
    """Two layers, one the gate of the other (SwiGLU)."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Conv2d(inner, outer, 1), nn.Conv2d(inner, outer, 1)

    def forward(self, x):
        return F.silu(self.gate(x)) * self.value(x)


class Residual(nn.Module):
    def __init__(self, body: nn.Module, short: nn.Module) -> None:
        super().__init__()
        self.body, self.short = body, short

    def forward(self, x):
        return self.short(x) + self.body(x)


class PaddedResidual(nn.Module):
    """Zeros for the channels that the body has more."""

    def __init__(self, body: nn.Module, more: int) -> None:
        super().__init__()
        self.body, self.more = body, more

    def forward(self, x):
        return F.pad(x, (0, 0, 0, 0, 0, self.more)) + self.body(x)


class Concat(nn.Module):
    """Branches side by side; the input may be one of them."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class Split(nn.Module):
    """Two parts of the channels, a branch for each."""

    def __init__(self, first: int, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.first, self.left, self.right = first, left, right

    def forward(self, x):
        return torch.cat([self.left(x[:, : self.first]), self.right(x[:, self.first :])], 1)


class Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x):
        batch, channels, height, width = x.shape
        x = x.reshape(batch, self.groups, channels // self.groups, height, width)
        return x.transpose(1, 2).reshape(batch, channels, height, width)


class Attention(nn.Module):
    """Multi-head attention between pixels, with a residual connection."""

    def __init__(self, width: int, heads: int, size: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.size, self.fused = heads, size, fused
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, heads * size) for _ in range(3))
        self.out = nn.Linear(heads * size, width)

    def forward(self, x):
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = (f(tokens).unflatten(-1, (-1, self.size)).transpose(1, 2)
                   for f in (self.q, self.k, self.v))  # fmt: skip
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-1, -2) * self.size**-0.5).softmax(-1) @ v
        y = self.out(y.transpose(1, 2).flatten(2)).transpose(1, 2)
        return x + y.reshape(x.shape)


class PooledHead(nn.Module):
    """Classes from the mean of each channel, or from mean and maximum."""

    def __init__(self, width: int, num_classes: int, both: bool) -> None:
        super().__init__()
        self.both, self.fc = both, nn.Linear(2 * width if both else width, num_classes)

    def forward(self, x):
        mean = x.mean((2, 3))
        return self.fc(torch.cat([mean, x.amax((2, 3))], 1) if self.both else mean)


class FlatHead(nn.Module):
    """All pixels into a hidden layer."""

    def __init__(self, width: int, side: int, num_classes: int, hidden: int, view: bool) -> None:
        super().__init__()
        self.view, self.inputs = view, width * side * side
        self.fc1, self.fc2 = nn.Linear(self.inputs, hidden), nn.Linear(hidden, num_classes)
        self.side = side

    def forward(self, x):
        x = F.adaptive_avg_pool2d(x, self.side)
        x = x.contiguous().view(x.size(0), -1) if self.view else torch.flatten(x, 1)
        return self.fc2(F.relu(self.fc1(x)))


class ConvolutionHead(nn.Module):
    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.classes = nn.Conv2d(width, num_classes, 1)

    def forward(self, x):
        return F.adaptive_avg_pool2d(self.classes(x), 1).flatten(1)


class DecodedHead(nn.Module):
    """Pooled, a linear layer, a view, a transposed convolution, pooled again."""

    def __init__(self, width: int, num_classes: int, inner: int) -> None:
        super().__init__()
        self.wide, self.inner = nn.Linear(width, inner * 4), inner
        self.up, self.fc = nn.ConvTranspose2d(inner, 10, 2, stride=2), nn.Linear(10, num_classes)

    def forward(self, x):
        x = F.relu(self.wide(x.mean((2, 3)))).view(x.shape[0], -1, 2, 2)
        return self.fc(F.relu(self.up(x)).mean((2, 3)))
