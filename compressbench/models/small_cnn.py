"""Small residual convolutional network for small images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.validation import check_integer


def convolution(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution with BatchNorm: [B, inner, H, W] -> [B, outer, H/stride, W/stride]."""
    conv = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer))


class ResidualBlock(nn.Module):
    """relu(x + f(x)), f being two 3x3 convolutions (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = convolution(width, width)
        self.second = convolution(width, width)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.relu(inputs + self.second(F.relu(self.first(inputs))))


class SmallCnn(nn.Module):
    """Three resolutions with `width`, 2 `width` and 4 `width` channels, `depth` blocks each.

    A convolution of stride 2 leads to the next resolution. The classifier takes the mean over all
    positions, so any image size works. Maps [B, C, H, W] to logits [B, num_classes].
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, width: int = 16, depth: int = 1
    ) -> None:
        super().__init__()
        check_integer("width", width, 1, 2**14)
        check_integer("depth", depth, 1, 100)
        self.entries = nn.ModuleList()
        self.blocks = nn.ModuleList()
        inner = input_shape[0]
        for stride, outer in ((1, width), (2, 2 * width), (2, 4 * width)):
            self.entries.append(convolution(inner, outer, stride))
            self.blocks.append(nn.Sequential(*[ResidualBlock(outer) for _ in range(depth)]))
            inner = outer
        self.classifier = nn.Linear(inner, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        features = inputs
        for entry, blocks in zip(self.entries, self.blocks, strict=True):
            features = blocks(F.relu(entry(features)))
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(features, 1).flatten(1))
        return logits
