"""Networks to prepare for quantization: a depthwise one trained on digits, many odd ones."""

from __future__ import annotations

import functools
import itertools
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.data.digits import Digits

SHAPE = (3, 7, 9)


class Depthwise(nn.Module):
    """MobileNet in small (Howard et al. 2017, arXiv:1704.04861): depthwise separable blocks."""

    def __init__(self, width: int = 16, blocks: int = 2) -> None:
        super().__init__()
        self.stem = block(1, width, 3)
        self.blocks = nn.Sequential()
        for number in range(blocks):
            inner, outer = width << number, width << (number + 1)
            self.blocks.append(block(inner, inner, 3, groups=inner))
            self.blocks.append(block(inner, outer, 1))
        self.fc = nn.Linear(width << blocks, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def block(inner: int, outer: int, kernel: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inner, outer, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer), nn.ReLU())


@functools.cache
def digits() -> Digits:
    return Digits(max_shift=0)


@functools.cache
def _trained() -> Depthwise:
    torch.manual_seed(0)
    model, train = Depthwise(), digits().split("train")
    inputs = digits().prepare(train.inputs)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    order = torch.Generator().manual_seed(0)
    for _ in range(6):
        for rows in torch.randperm(len(inputs), generator=order).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[rows]), train.targets[rows]).backward()
            optimizer.step()
    return model.eval()


def trained() -> Depthwise:
    """A copy of one trained for seconds on digits."""
    return deepcopy(_trained())


def spread_(model: Depthwise, decades: float) -> None:
    """Multiply each channel between two layers of a folded model by its own factor, log-uniform
    over `decades`, and divide what reads it: the function stays, the ranges differ.
    """
    generator = torch.Generator().manual_seed(1)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        for first, second in itertools.pairwise(layers):
            factor = 10 ** (decades * (torch.rand(len(first.weight), generator=generator) - 0.5))
            first.weight *= factor.view(-1, 1, 1, 1)
            first.bias *= factor
            second.weight /= (
                factor.view(-1, 1, 1, 1) if second.groups > 1 else factor.view(-1, 1, 1)
            )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.one = nn.Conv2d(6, 9, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(9)
        self.two = nn.Conv2d(9, 6, (3, 1), padding=(1, 0), bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.bn2(self.two(F.relu(self.bn1(self.one(x))))) + x, inplace=True)
        return self.fc(x.mean((2, 3)))


class Grouped(nn.Module):
    """Groups of several widths, depthwise with a multiplier, no activation, pooling between."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1, bias=False)
        self.bn_a = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False)
        self.bn_b = nn.BatchNorm2d(12, affine=False)
        self.c = nn.Conv2d(12, 24, 3, groups=12)
        self.d = nn.Conv2d(24, 6, 1, groups=2)
        self.fc = nn.Linear(6, 5, bias=False)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn_a(self.a(x))), 3, 1, 1)
        x = self.d(F.relu(self.c(self.bn_b(self.b(x)))))
        return self.fc(F.adaptive_avg_pool2d(F.leaky_relu(x, 0.1), 1).view(len(x), -1))


class Concatenation(nn.Module):
    """Two convolutions with norms of their own into one; then a norm over both."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 4, 3, padding=1)
        self.right = nn.Conv2d(3, 5, 1, bias=False)
        self.bn_left, self.bn_right = nn.BatchNorm2d(4), nn.BatchNorm2d(5)
        self.both = nn.BatchNorm2d(9)
        self.out = nn.Conv2d(9, 4, 3)

    def forward(self, x):
        x = torch.cat([F.relu(self.bn_left(self.left(x))), self.bn_right(self.right(x))], 1)
        return self.out(F.relu(self.both(x))).flatten(1)


class Sequences(nn.Module):
    """Conv1d, ConvTranspose1d and Linear layers with BatchNorm1d."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(2), nn.Conv1d(3, 6, 5, stride=2, bias=False), nn.BatchNorm1d(6), nn.ReLU(),
            nn.ConvTranspose1d(6, 4, 3), nn.BatchNorm1d(4), nn.Flatten(),
            nn.Linear(128, 7, bias=False), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(),
            nn.Linear(7, 3),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


class Six(nn.Module):
    """Clamped activations, which do not scale; a gate, which reads a convolution twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.bn = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)
        self.two, self.three = nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 1)
        self.bn3 = nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = self.two(F.relu6(self.bn(self.one(x))))
        x = self.three(torch.sigmoid(x) * x)
        x = self.bn3(x) + x
        return self.fc(F.hardswish(x).mean((2, 3)))


# Network -> the pairs that fold, the pairs that equalize.
EXPECTED = {
    Residual: (
        {"stem": "bn", "one": "bn1", "two": "bn2"},
        {("one", "two")},
    ),
    Grouped: (
        {"a": "bn_a", "b": "bn_b"},
        {("a", "b"), ("b", "c"), ("c", "d"), ("d", "fc")},
    ),
    Concatenation: ({"left": "bn_left", "right": "bn_right"}, set()),
    Sequences: (
        {"layers.1": "layers.2", "layers.7": "layers.8"},
        {("layers.7", "layers.11")},
    ),
    Six: ({"one": "bn"}, set()),
}


def randomize_(model: nn.Module, seed: int) -> None:
    """Norms with gamma of both signs, one zero, and variances over three decades."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            if module.track_running_stats:
                module.running_mean.normal_(0.0, 0.5, generator=generator)
                spread = torch.rand(module.num_features, generator=generator)
                module.running_var.copy_(10 ** (3 * spread - 2))
            if module.affine:
                with torch.no_grad():
                    module.weight.normal_(generator=generator)
                    module.weight[0] = 0.0
                    module.bias.normal_(generator=generator)


def make(kind: type[nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = kind().eval()
    randomize_(model, seed)
    return model


def noise(rows: int = 5) -> Tensor:
    return torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(7))
