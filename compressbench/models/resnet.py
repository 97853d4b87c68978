"""Residual networks for small images (CIFAR)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.validation import check_integer


class BasicBlock(nn.Module):
    """relu(s(x) + bn(conv(relu(bn(conv(x)))))) with 3x3 convolutions.

    The shortcut s is the identity, or a 1x1 convolution with BatchNorm if the shape changes.
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inner != outer:
            projection = nn.Conv2d(inner, outer, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outer))

    def forward(self, inputs: Tensor) -> Tensor:
        shortcut = inputs if self.downsample is None else self.downsample(inputs)
        features = F.relu(self.bn1(self.conv1(inputs)))
        return F.relu(self.bn2(self.conv2(features)) + shortcut)


class ResNet(nn.Module):
    """ResNet-`depth` for small images (He et al. 2015, arXiv:1512.03385, section 4.2).

    Three stages of (depth - 2) / 6 blocks with `base_width`, 2 and 4 times `base_width` channels;
    shortcuts between stages are 1x1 convolutions. Parameter names are those of torchvision. Maps
    [B, C, H, W] to logits [B, num_classes]. ResNet-20 has 270,896 weights in convolutions and
    classifier, and 40,813,184 multiply-accumulates per 3x32x32 image.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, depth: int = 20, base_width: int = 16
    ) -> None:
        super().__init__()
        check_integer("depth", depth, 1, 1202)
        check_integer("base_width", base_width, 1, 2**14)
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise UserError(f"depth must be 6n+2 (8, 14, 20, 32, 56, ...), got {depth}")
        width = base_width
        self.conv1 = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, inputs: Tensor) -> Tensor:
        features = F.relu(self.bn1(self.conv1(inputs)))
        features = self.layer3(self.layer2(self.layer1(features)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(features, 1).flatten(1))
        return logits


def _stage(inner: int, outer: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inner, outer, stride)
    return nn.Sequential(first, *[BasicBlock(outer, outer, 1) for _ in range(blocks - 1)])
