"""Networks that mix pixels without attention."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.architectures.parts import ChannelNorm, Pooled, conv_act


class Mixer(nn.Module):
    """Perceptrons over the tokens and over the channels, in turn."""

    def __init__(self, input_shape, num_classes, width=22) -> None:
        super().__init__()
        rows = input_shape[1]
        self.embed = nn.Linear(input_shape[0] * input_shape[2], width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(nn.Linear(rows, 18), nn.GELU(), nn.Linear(18, rows))
        self.channels = nn.Sequential(nn.Linear(width, 38), nn.GELU(), nn.Linear(38, width))
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.embed(x.transpose(1, 2).flatten(2))
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.fc(x.mean(1))


class GatedPerceptron(nn.Module):
    """Half of the channels, mixed over the tokens, gate the other half (gMLP)."""

    def __init__(self, input_shape, num_classes, width=20, hidden=36) -> None:
        super().__init__()
        self.embed = nn.Linear(input_shape[0] * input_shape[2], width)
        self.norm, self.inner_norm = nn.LayerNorm(width), nn.LayerNorm(hidden // 2)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden // 2, width)
        self.mix = nn.Conv1d(input_shape[1], input_shape[1], 1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.embed(x.transpose(1, 2).flatten(2))
        value, gate = F.gelu(self.up(self.norm(x))).chunk(2, -1)
        x = x + self.down(value * self.mix(self.inner_norm(gate)))
        return self.fc(x.mean(1))


class PoolFormer(nn.Module):
    """A pooling in place of attention; GroupNorm of one group, layer scale."""

    def __init__(self, input_shape, num_classes, width=20) -> None:
        super().__init__()
        self.patch = nn.Conv2d(input_shape[0], width, 2, stride=2)
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.fc1, self.fc2 = nn.Conv2d(width, 38, 1), nn.Conv2d(38, width, 1)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.5))
        self.head = Pooled(width, num_classes)

    def forward(self, x):
        x = self.patch(x)
        y = self.norm1(x)
        x = x + self.scale * (self.pool(y) - y)
        x = x + self.scale * self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x)


class ConvNeXt(nn.Module):
    """Depthwise, LayerNorm over permuted channels, linear layers, layer scale."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(input_shape[0], width, 2, stride=2), ChannelNorm(width))
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.2))
        self.reduce = nn.Sequential(ChannelNorm(width), nn.Conv2d(width, 26, 2, stride=2))
        self.last, self.fc = nn.LayerNorm(26), nn.Linear(26, num_classes)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        x = self.reduce(x + y.permute(0, 3, 1, 2))
        return self.fc(self.last(x.mean((2, 3))))


class GlobalResponse(nn.Module):
    """ConvNeXt V2: the hidden channels are normalised by their mean norm."""

    def __init__(self, input_shape, num_classes, width=16, hidden=36) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], width)
        self.up, self.down = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)
        self.gamma = nn.Parameter(torch.ones(1, hidden, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, hidden, 1, 1))
        self.head = Pooled(width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        y = F.gelu(self.up(x))
        norm = y.norm(p=2, dim=(2, 3), keepdim=True)
        y = self.gamma * (y * norm / (norm.mean(1, keepdim=True) + 1e-6)) + self.beta + y
        return self.head(x + self.down(y))


class ConvMixer(nn.Sequential):
    def __init__(self, input_shape, num_classes, width=22) -> None:
        class Residual(nn.Sequential):
            def forward(self, x):
                return x + super().forward(x)

        super().__init__(
            nn.Conv2d(input_shape[0], width, 2, stride=2), nn.GELU(), nn.BatchNorm2d(width),
            Residual(
                nn.Conv2d(width, width, 3, padding="same", groups=width), nn.GELU(),
                nn.BatchNorm2d(width),
            ),
            nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width),
            Pooled(width, num_classes),
        )  # fmt: skip


class AffineMixer(nn.Module):
    """Learnt scales and shifts in place of norms (ResMLP)."""

    def __init__(self, input_shape, num_classes, width=20) -> None:
        super().__init__()
        rows = input_shape[1]
        self.embed = nn.Linear(input_shape[0] * input_shape[2], width)
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.mix = nn.Linear(rows, rows)
        self.up, self.down = nn.Linear(width, 34), nn.Linear(34, width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.embed(x.transpose(1, 2).flatten(2))
        y = self.scale * x + self.shift
        x = x + self.mix(y.transpose(1, 2)).transpose(1, 2)
        return self.fc((x + self.down(F.gelu(self.up(x)))).mean(1))


class FourierMixer(nn.Module):
    """A fixed matrix mixes the tokens (FNet, as cosines)."""

    def __init__(self, input_shape, num_classes, width=22) -> None:
        super().__init__()
        rows = torch.arange(input_shape[1])
        angle = torch.pi * (rows[:, None] + 0.5) * rows[None] / input_shape[1]
        self.register_buffer("cosines", angle.cos() / input_shape[1] ** 0.5)
        self.embed = nn.Linear(input_shape[0] * input_shape[2], width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 34), nn.Linear(34, width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.embed(x.transpose(1, 2).flatten(2))
        x = self.norm(x + self.cosines @ x)
        return self.fc((x + self.down(F.gelu(self.up(x)))).mean(1))
