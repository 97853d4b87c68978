"""Residual and densely connected networks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.architectures.parts import Pooled, SqueezeExcite, conv_act, conv_norm


class Basic(nn.Module):
    def __init__(self, inner: int, outer: int, stride: int = 1) -> None:
        super().__init__()
        self.a = conv_act(inner, outer, stride=stride)
        self.b = conv_norm(outer, outer)
        same = stride == 1 and inner == outer
        self.shortcut = nn.Identity() if same else conv_norm(inner, outer, 1, stride=stride)

    def forward(self, x):
        return F.relu(self.shortcut(x) + self.b(self.a(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (grouped in ResNeXt and RegNet), 1x1; optionally squeeze-excite."""

    def __init__(self, inner, outer, middle, *, stride=1, groups=1, gated=False) -> None:
        super().__init__()
        self.a = conv_act(inner, middle, 1)
        self.b = conv_act(middle, middle, stride=stride, groups=groups)
        self.gate = SqueezeExcite(middle, 6) if gated else nn.Identity()
        self.c = conv_norm(middle, outer, 1)
        same = stride == 1 and inner == outer
        self.shortcut = nn.Identity() if same else conv_norm(inner, outer, 1, stride=stride)

    def forward(self, x):
        return F.relu(self.shortcut(x) + self.c(self.gate(self.b(self.a(x)))))


class BasicResNet(nn.Sequential):
    def __init__(self, input_shape, num_classes, width=14) -> None:
        super().__init__(
            conv_act(input_shape[0], width), Basic(width, width), Basic(width, 2 * width, 2),
            Basic(2 * width, 2 * width), Pooled(2 * width, num_classes),
        )  # fmt: skip


class BottleneckResNet(nn.Sequential):
    def __init__(self, input_shape, num_classes) -> None:
        super().__init__(
            conv_act(input_shape[0], 20), Bottleneck(20, 36, 10), Bottleneck(36, 36, 10),
            Bottleneck(36, 44, 14, stride=2), Pooled(44, num_classes),
        )  # fmt: skip


class ResNeXt(nn.Sequential):
    def __init__(self, input_shape, num_classes) -> None:
        super().__init__(
            conv_act(input_shape[0], 20), Bottleneck(20, 40, 24, groups=4),
            Bottleneck(40, 40, 24, stride=2, groups=4), Pooled(40, num_classes),
        )  # fmt: skip


class RegNet(nn.Sequential):
    """Groups of a fixed width, squeeze-excite on the grouped map (RegNetY)."""

    def __init__(self, input_shape, num_classes) -> None:
        super().__init__(
            conv_act(input_shape[0], 16), Bottleneck(16, 24, 24, groups=3, gated=True),
            Bottleneck(24, 40, 40, stride=2, groups=5, gated=True), Pooled(40, num_classes),
        )  # fmt: skip


class SqueezeExciteResNet(nn.Sequential):
    def __init__(self, input_shape, num_classes) -> None:
        super().__init__(
            conv_act(input_shape[0], 18), Bottleneck(18, 18, 12, gated=True),
            Bottleneck(18, 30, 14, stride=2, gated=True), Pooled(30, num_classes),
        )  # fmt: skip


class PreActivation(nn.Module):
    """BatchNorm and ReLU in front of each convolution; the sum is never normalised."""

    def __init__(self, input_shape, num_classes, width=20) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], width, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(5))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.head = Pooled(width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        for i in (0, 2):
            y = self.convs[i](F.relu(self.norms[i](x)))
            x = x + self.convs[i + 1](F.relu(self.norms[i + 1](y)))
        return self.head(F.relu(self.norms[4](x)))


class PaddingShortcut(nn.Module):
    """Shortcuts without weights: every second pixel, and zeros for the new channels."""

    def __init__(self, input_shape, num_classes, width=12, padded=12) -> None:
        super().__init__()
        self.padded = padded
        self.stem = conv_act(input_shape[0], width)
        self.a = conv_act(width, width + padded, stride=2)
        self.b = conv_norm(width + padded, width + padded)
        self.head = Pooled(width + padded, num_classes)

    def forward(self, x):
        x = self.stem(x)
        half = self.padded // 2
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, self.padded - half))
        return self.head(F.relu(short + self.b(self.a(x))))


class DenseNet(nn.Module):
    def __init__(self, input_shape, num_classes, growth=10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], 14, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(14 + i * growth), nn.ReLU(),
                nn.Conv2d(14 + i * growth, growth, 3, padding=1, bias=False),
            )
            for i in range(3)
        )  # fmt: skip
        width = 14 + 3 * growth
        self.transition = nn.Sequential(
            nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 22, 1), nn.AvgPool2d(2)
        )
        self.head = Pooled(22, num_classes)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.head(F.relu(self.transition(x)))


class DualPath(nn.Module):
    """One part of a block's output is added, the other is concatenated."""

    def __init__(self, input_shape, num_classes, width=16, more=6) -> None:
        super().__init__()
        self.width = width
        self.stem = conv_act(input_shape[0], width + more)
        self.blocks = nn.ModuleList(
            conv_act(width + more * (i + 1), width + more) for i in range(2)
        )
        self.head = Pooled(width + 3 * more, num_classes)

    def forward(self, x):
        x = self.stem(x)
        added, dense = x[:, : self.width], x[:, self.width :]
        for block in self.blocks:
            y = block(torch.cat([added, dense], 1))
            added = added + y[:, : self.width]
            dense = torch.cat([dense, y[:, self.width :]], 1)
        return self.head(torch.cat([added, dense], 1))


class RepVGG(nn.Module):
    """Three branches of different sizes, BatchNorm of the input among them, summed."""

    def __init__(self, input_shape, num_classes, width=22) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], width)
        self.big = nn.ModuleList(conv_norm(width, width) for _ in range(2))
        self.small = nn.ModuleList(conv_norm(width, width, 1) for _ in range(2))
        self.same = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2))
        self.head = Pooled(width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        for big, small, same in zip(self.big, self.small, self.same, strict=True):
            x = F.relu(big(x) + small(x) + same(x))
        return self.head(x)


class HighResolution(nn.Module):
    """Two resolutions side by side that exchange their maps (HRNet)."""

    def __init__(self, input_shape, num_classes, fine=12, coarse=20) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], fine)
        self.down = conv_act(fine, coarse, stride=2)
        self.fine, self.coarse = Basic(fine, fine), Basic(coarse, coarse)
        self.to_fine = conv_norm(coarse, fine, 1)
        self.to_coarse = conv_norm(fine, coarse, stride=2)
        self.head = Pooled(fine + coarse, num_classes)

    def forward(self, x):
        fine = self.stem(x)
        coarse = self.down(fine)
        fine, coarse = self.fine(fine), self.coarse(coarse)
        up = F.interpolate(self.to_fine(coarse), scale_factor=2.0, mode="nearest")
        fine, coarse = F.relu(fine + up), F.relu(coarse + self.to_coarse(fine))
        fine = F.avg_pool2d(fine, 2)
        return self.head(torch.cat([fine, coarse], 1))


class StochasticDepth(nn.Module):
    """In training a block is skipped for some samples."""

    def __init__(self, input_shape, num_classes, width=18, keep=0.7) -> None:
        super().__init__()
        self.keep = keep
        self.stem = conv_act(input_shape[0], width)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv_act(width, width), conv_norm(width, width)) for _ in range(2)
        )
        self.head = Pooled(width, num_classes)

    def drop(self, y):
        if not self.training:
            return y
        kept = torch.rand(len(y), 1, 1, 1, device=y.device) < self.keep
        return y * kept / self.keep

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + self.drop(block(x)))
        return self.head(x)


class LayerDrop(StochasticDepth):
    """In training a whole block may not be called."""

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            if not self.training or torch.rand(1).item() < self.keep:
                x = F.relu(x + block(x))
        return self.head(x)


class ReZero(nn.Module):
    """Branches are scaled by one learnt number."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], width)
        self.a, self.b = conv_act(width, width + 6), conv_norm(width + 6, width)
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.head = Pooled(width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        return self.head(F.relu(x + self.scale * self.b(self.a(x))))
