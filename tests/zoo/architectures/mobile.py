"""Plain and mobile convolutional networks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.architectures.parts import Pooled, SqueezeExcite, conv_act, conv_norm


class VGG(nn.Module):
    def __init__(self, input_shape, num_classes) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv_act(input_shape[0], 14), conv_act(14, 18), nn.MaxPool2d(2),
            conv_act(18, 26), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(26 * 4, 30), nn.ReLU(), nn.Dropout(0.2),
            nn.Linear(30, num_classes),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(self.features(x))


class MobileNetV1(nn.Sequential):
    def __init__(self, input_shape, num_classes) -> None:
        super().__init__(
            conv_act(input_shape[0], 14), conv_act(14, 14, groups=14), conv_act(14, 26, 1),
            conv_act(26, 26, stride=2, groups=26), conv_act(26, 34, 1), Pooled(34, num_classes),
        )  # fmt: skip


class Inverted(nn.Module):
    """Expand, depthwise, (squeeze-excite,) project."""

    def __init__(self, inner, outer, middle, *, stride=1, act=nn.ReLU6, gate=None) -> None:
        super().__init__()
        self.same = stride == 1 and inner == outer
        self.expand = conv_act(inner, middle, 1, act)
        self.depthwise = conv_act(middle, middle, 3, act, stride=stride, groups=middle)
        self.gate = SqueezeExcite(middle, 6, gate) if gate else nn.Identity()
        self.project = conv_norm(middle, outer, 1)

    def forward(self, x):
        y = self.project(self.gate(self.depthwise(self.expand(x))))
        return x + y if self.same else y


class MobileNetV2(nn.Sequential):
    def __init__(self, input_shape, num_classes) -> None:
        super().__init__(
            conv_act(input_shape[0], 12), Inverted(12, 12, 30), Inverted(12, 20, 38, stride=2),
            Inverted(20, 20, 50), conv_act(20, 44, 1), Pooled(44, num_classes),
        )  # fmt: skip


class MobileNetV3(nn.Sequential):
    def __init__(self, input_shape, num_classes) -> None:
        options = {"act": nn.Hardswish, "gate": nn.Hardsigmoid}
        super().__init__(
            conv_act(input_shape[0], 12, act=nn.Hardswish), Inverted(12, 12, 26, **options),
            Inverted(12, 18, 34, stride=2, **options), conv_act(18, 30, 1, nn.Hardswish),
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(30, 36, 1), nn.Hardswish(), nn.Flatten(),
            nn.Linear(36, num_classes),
        )  # fmt: skip


class EfficientNet(nn.Sequential):
    def __init__(self, input_shape, num_classes) -> None:
        options = {"act": nn.SiLU, "gate": nn.Sigmoid}
        super().__init__(
            conv_act(input_shape[0], 14, act=nn.SiLU), Inverted(14, 14, 28, **options),
            Inverted(14, 22, 42, stride=2, **options), Inverted(22, 22, 66, **options),
            conv_act(22, 50, 1, nn.SiLU), Pooled(50, num_classes),
        )  # fmt: skip


def shuffled(x, groups):
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).flatten(1, 2)


class ShuffleNetV1(nn.Module):
    """Grouped 1x1 convolutions with a channel shuffle in between."""

    def __init__(self, input_shape, num_classes, width=24) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], width)
        self.a = conv_act(width, 12, 1, groups=3)
        self.depthwise = conv_norm(12, 12, groups=12)
        self.b = conv_norm(12, width, 1, groups=3)
        self.last = conv_act(width, 26, 1)
        self.head = Pooled(26, num_classes)

    def forward(self, x):
        x = self.stem(x)
        y = self.b(self.depthwise(shuffled(self.a(x), 3)))
        return self.head(self.last(F.relu(x + y)))


class ShuffleNetV2(nn.Module):
    """Half of the channels pass a branch; concatenated and shuffled afterwards."""

    def __init__(self, input_shape, num_classes, half=12) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], 2 * half)
        self.branches = nn.ModuleList(
            nn.Sequential(
                conv_act(half, half, 1), conv_norm(half, half, groups=half),
                conv_act(half, half, 1),
            )
            for _ in range(2)
        )  # fmt: skip
        self.last = conv_act(2 * half, 34, 1)
        self.head = Pooled(34, num_classes)

    def forward(self, x):
        x = self.stem(x)
        for branch in self.branches:
            kept, changed = x.chunk(2, 1)
            x = shuffled(torch.cat([kept, branch(changed)], 1), 2)
        return self.head(self.last(x))


class GhostNet(nn.Module):
    """Half of a layer's channels come from the other half by a cheap depthwise convolution."""

    def __init__(self, input_shape, num_classes) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], 14)
        self.first = nn.ModuleList([conv_act(14, 12, 1), conv_act(24, 14, 1)])
        self.cheap = nn.ModuleList([conv_act(n, n, groups=n) for n in (12, 14)])
        self.head = Pooled(28, num_classes)

    def forward(self, x):
        x = self.stem(x)
        for first, cheap in zip(self.first, self.cheap, strict=True):
            y = first(x)
            x = torch.cat([y, cheap(y)], 1)
        return self.head(x)


class SqueezeNet(nn.Module):
    def __init__(self, input_shape, num_classes) -> None:
        super().__init__()
        self.stem = nn.Conv2d(input_shape[0], 18, 3, padding=1)
        self.squeeze = nn.Conv2d(18, 6, 1)
        self.left, self.right = nn.Conv2d(6, 14, 1), nn.Conv2d(6, 18, 3, padding=1)
        self.classes = nn.Conv2d(32, num_classes, 1)

    def forward(self, x):
        x = F.relu(self.squeeze(F.relu(self.stem(x))))
        x = F.relu(torch.cat([self.left(x), self.right(x)], 1))
        return F.adaptive_avg_pool2d(self.classes(x), 1).flatten(1)


class Inception(nn.Module):
    """Four branches, one of them factorised (1x3, 3x1), concatenated."""

    def __init__(self, input_shape, num_classes) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], 14)
        self.one = conv_act(14, 10, 1)
        self.two = nn.Sequential(conv_act(14, 10, 1), conv_act(10, 14))
        self.three = nn.Sequential(
            nn.Conv2d(14, 12, (1, 3), padding=(0, 1)), nn.ReLU(),
            nn.Conv2d(12, 12, (3, 1), padding=(1, 0)), nn.ReLU(),
        )  # fmt: skip
        self.four = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_act(14, 6, 1))
        self.head = Pooled(42, num_classes)

    def forward(self, x):
        x = self.stem(x)
        return self.head(torch.cat([f(x) for f in (self.one, self.two, self.three, self.four)], 1))


class NASCell(nn.Module):
    """A cell whose inputs are the two cells before it; sums of separable convolutions and pools."""

    def __init__(self, older: int, newer: int, width: int) -> None:
        super().__init__()
        self.older, self.newer = conv_norm(older, width, 1), conv_norm(newer, width, 1)
        self.separable = nn.Sequential(
            nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            *conv_norm(width, width, 1),
        )  # fmt: skip
        self.dilated = conv_norm(width, width, dilation=2)

    def forward(self, older, newer):
        a, b = self.older(F.relu(older)), self.newer(F.relu(newer))
        left = self.separable(a) + b
        right = self.dilated(b) + F.avg_pool2d(a, 3, 1, 1)
        return torch.cat([left, right, b], 1)


class NASNet(nn.Module):
    def __init__(self, input_shape, num_classes, width=10) -> None:
        super().__init__()
        self.stem = conv_norm(input_shape[0], 16)
        self.first = NASCell(16, 16, width)
        self.second = NASCell(16, 3 * width, width)
        self.head = Pooled(3 * width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        first = self.first(x, x)
        return self.head(F.relu(self.second(x, first)))


class CrossStage(nn.Module):
    """Two 1x1 convolutions split a map, one part passes blocks, both are joined (CSPNet)."""

    def __init__(self, input_shape, num_classes) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], 20, act=nn.Mish)
        self.skip, self.entry = conv_act(20, 12, 1), conv_act(20, 14, 1)
        self.block = nn.Sequential(conv_act(14, 10, 1), conv_act(10, 14))
        self.join = conv_act(26, 30, 1)
        self.head = Pooled(30, num_classes)

    def forward(self, x):
        x = self.stem(x)
        y = self.entry(x)
        y = y + self.block(y)
        return self.head(self.join(torch.cat([y, self.skip(x)], 1)))


class AllConvolutional(nn.Sequential):
    """No linear layer, no norm; leaky activations."""

    def __init__(self, input_shape, num_classes) -> None:
        super().__init__(
            nn.Conv2d(input_shape[0], 18, 3, padding=1), nn.LeakyReLU(0.1),
            nn.Conv2d(18, 30, 3, stride=2, padding=1), nn.ELU(),
            nn.Conv2d(30, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
