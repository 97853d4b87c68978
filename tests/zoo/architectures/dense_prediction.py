"""Encoders and decoders with a pooled classifier, and attention over maps."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.architectures.parts import Pooled, conv_act, conv_norm


class UNet(nn.Module):
    def __init__(self, input_shape, num_classes) -> None:
        super().__init__()
        self.one, self.two = conv_act(input_shape[0], 12), conv_act(12, 18)
        self.bottom = conv_act(18, 26)
        self.up_two = nn.ConvTranspose2d(26, 18, 2, stride=2)
        self.dec_two = conv_act(36, 18)
        self.up_one = nn.ConvTranspose2d(18, 12, 2, stride=2)
        self.dec_one = conv_act(24, 14)
        self.head = Pooled(14, num_classes)

    def forward(self, x):
        one = self.one(x)
        two = self.two(F.max_pool2d(one, 2))
        x = self.up_two(self.bottom(F.max_pool2d(two, 2)))
        x = self.up_one(self.dec_two(torch.cat([x, two], 1)))
        return self.head(self.dec_one(torch.cat([x, one], 1)))


class FeaturePyramid(nn.Module):
    def __init__(self, input_shape, num_classes, width=14) -> None:
        super().__init__()
        self.one, self.two = conv_act(input_shape[0], 12), conv_act(12, 22, stride=2)
        self.three = conv_act(22, 30, stride=2)
        self.lateral = nn.ModuleList(nn.Conv2d(n, width, 1) for n in (12, 22, 30))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.fc = nn.Linear(3 * width, num_classes)

    def forward(self, x):
        one = self.one(x)
        two = self.two(one)
        maps = [f(m) for f, m in zip(self.lateral, (one, two, self.three(two)), strict=True)]
        for i in (1, 0):
            maps[i] = maps[i] + F.interpolate(maps[i + 1], scale_factor=2.0)
        maps = [f(m).mean((2, 3)) for f, m in zip(self.smooth, maps, strict=True)]
        return self.fc(torch.cat(maps, 1))


class Hourglass(nn.Module):
    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], width)
        self.skips = nn.ModuleList(conv_act(width, width, 1) for _ in range(2))
        self.down = nn.ModuleList(conv_act(width, width) for _ in range(2))
        self.up = nn.ModuleList(conv_act(width, width) for _ in range(2))
        self.head = Pooled(width, num_classes)

    def level(self, x, depth):
        if depth == 2:
            return x
        y = self.level(self.down[depth](F.max_pool2d(x, 2)), depth + 1)
        up = F.interpolate(self.up[depth](y), scale_factor=2.0, mode="bilinear")
        return self.skips[depth](x) + up

    def forward(self, x):
        return self.head(self.level(self.stem(x), 0))


class Decoder(nn.Module):
    """A linear layer, `view`, transposed convolutions."""

    def __init__(self, input_shape, num_classes, width=22) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], 26)
        self.embed = nn.Linear(26, width * 4)
        self.up = nn.ConvTranspose2d(width, 14, 3, 2, 1, output_padding=1)
        self.norm = nn.BatchNorm2d(14)
        self.last = conv_act(14, 18)
        self.head = Pooled(18, num_classes)

    def forward(self, x):
        x = F.relu(self.embed(self.stem(x).mean((2, 3))))
        x = F.relu(self.norm(self.up(x.view(x.shape[0], -1, 2, 2))))
        return self.head(self.last(x))


class PixelShuffle(nn.Module):
    """Channels become pixels, as super-resolution ends; and pixels channels, as it begins."""

    def __init__(self, input_shape, num_classes) -> None:
        super().__init__()
        self.down = nn.PixelUnshuffle(2)
        self.stem = conv_act(4 * input_shape[0], 20)
        self.wide = nn.Conv2d(20, 4 * 9, 3, padding=1)
        self.up = nn.PixelShuffle(2)
        self.last = conv_act(9, 22)
        self.head = Pooled(22, num_classes)

    def forward(self, x):
        return self.head(self.last(F.relu(self.up(self.wide(self.stem(self.down(x)))))))


class SpacePyramid(nn.Module):
    """Dilated convolutions and a pooled branch, side by side (ASPP)."""

    def __init__(self, input_shape, num_classes, width=10) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], 22)
        self.branches = nn.ModuleList(conv_act(22, width, dilation=d) for d in (1, 2, 3))
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(22, width, 1), nn.ReLU())
        self.project = conv_act(4 * width, 26, 1)
        self.head = Pooled(26, num_classes)

    def forward(self, x):
        x = self.stem(x)
        everywhere = F.interpolate(self.pooled(x), size=x.shape[2:], mode="nearest")
        maps = [*(branch(x) for branch in self.branches), everywhere]
        return self.head(self.project(torch.cat(maps, 1)))


class MaskTimesMap(nn.Module):
    """A map of one channel multiplies all channels of another."""

    def __init__(self, input_shape, num_classes, width=22) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], width)
        self.mask = nn.Conv2d(width, 1, 1)
        self.a, self.last = conv_norm(width, 26), conv_act(26, 18)
        self.head = Pooled(18, num_classes)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.last(self.mask(x).sigmoid() * self.a(x)))


class BlockAttention(nn.Module):
    """Channel attention by a shared perceptron, then spatial attention by mean and maximum over
    the channels (CBAM).
    """

    def __init__(self, input_shape, num_classes, width=20) -> None:
        super().__init__()
        self.stem, self.a = conv_act(input_shape[0], width), conv_act(width, width)
        self.shared = nn.Sequential(nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, width))
        self.spatial = nn.Conv2d(2, 1, 3, padding=1)
        self.last = conv_act(width, 26)
        self.head = Pooled(26, num_classes)

    def forward(self, x):
        x = self.a(self.stem(x))
        gate = self.shared(x.mean((2, 3))) + self.shared(x.amax((2, 3)))
        x = x * gate.sigmoid()[:, :, None, None]
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return self.head(self.last(x * self.spatial(pooled).sigmoid()))


class EfficientChannelAttention(nn.Module):
    """The gates of the channels come from a convolution over the channels (ECA)."""

    def __init__(self, input_shape, num_classes, width=20) -> None:
        super().__init__()
        self.stem, self.a = conv_act(input_shape[0], width), conv_norm(width, width)
        self.over = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.last = conv_act(width, 26)
        self.head = Pooled(26, num_classes)

    def forward(self, x):
        x = self.a(self.stem(x))
        gate = self.over(x.mean((2, 3)).unsqueeze(1)).sigmoid()
        return self.head(self.last(x * gate.transpose(1, 2).unsqueeze(3)))


class NonLocal(nn.Module):
    """Attention between all pixels; products of maps."""

    def __init__(self, input_shape, num_classes, width=18, inner=10) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], width)
        self.theta, self.phi, self.g = (nn.Conv2d(width, inner, 1) for _ in range(3))
        self.out = conv_norm(inner, width, 1)
        self.head = Pooled(width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        theta, phi, g = (f(x).flatten(2) for f in (self.theta, self.phi, self.g))
        weights = (theta.transpose(1, 2) @ phi).softmax(-1)
        y = (g @ weights.transpose(1, 2)).view(x.shape[0], -1, *x.shape[2:])
        return self.head(F.relu(x + self.out(y)))


class SelectiveKernel(nn.Module):
    """A softmax over two branches weighs each channel (SKNet)."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__()
        self.width = width
        self.stem = conv_act(input_shape[0], width)
        self.small, self.big = conv_act(width, width), conv_act(width, width, dilation=2)
        self.reduce, self.expand = nn.Linear(width, 8), nn.Linear(8, 2 * width)
        self.head = Pooled(width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        maps = torch.stack([self.small(x), self.big(x)], 1)
        gate = self.expand(F.relu(self.reduce(maps.sum(1).mean((2, 3)))))
        gate = gate.view(-1, 2, self.width, 1, 1).softmax(1)
        return self.head((maps * gate).sum(1))


class FlattenedBranches(nn.Module):
    """Two maps are flattened and concatenated."""

    def __init__(self, input_shape, num_classes) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], 14)
        self.a, self.b = conv_act(14, 12), conv_act(14, 22)
        self.fc1, self.fc2 = nn.Linear(12 * 16 + 22 * 4, 26), nn.Linear(26, num_classes)

    def forward(self, x):
        x = self.stem(x)
        a = F.adaptive_max_pool2d(self.a(x), 4).flatten(1)
        b = F.adaptive_max_pool2d(self.b(x), 2).flatten(1)
        return self.fc2(F.relu(self.fc1(torch.cat([a, b], 1))))


class InputAgain(nn.Module):
    """The input and its coordinates are concatenated to a later map (CoordConv)."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__()
        rows = torch.linspace(-1, 1, input_shape[1])[None, None, :, None]
        self.register_buffer("rows", rows.expand(1, 1, *input_shape[1:]).clone())
        self.stem = conv_act(input_shape[0], width)
        self.last = conv_act(width + input_shape[0] + 1, 26)
        self.head = Pooled(26, num_classes)

    def forward(self, x):
        rows = self.rows.expand(x.shape[0], -1, -1, -1)
        return self.head(self.last(torch.cat([x, self.stem(x), rows], 1)))
