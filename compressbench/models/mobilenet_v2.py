"""MobileNetV2 for small images (CIFAR)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.validation import check_positive

# expansion, channels, blocks, stride of the first block (Sandler et al. 2018, table 2), but with
# stride 1 instead of 2 in the first convolution and the second stage, for images of 32x32
_STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # fmt: skip


class InvertedResidual(nn.Module):
    """x + project(depthwise(expand(x))); the sum only if shapes match, `project` is linear."""

    def __init__(self, inner: int, outer: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inner * expansion
        layers = [] if expansion == 1 else [_block(inner, hidden, 1)]
        layers.append(_block(hidden, hidden, 3, stride, groups=hidden))
        project = nn.Conv2d(hidden, outer, 1, bias=False)
        self.conv = nn.Sequential(*layers, project, nn.BatchNorm2d(outer))
        self.adds = stride == 1 and inner == outer

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.conv(inputs)
        return inputs + outputs if self.adds else outputs


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) with three strides of 2 instead of five.

    `width` > 0 multiplies the number of channels, which is rounded to multiples of 8. Maps
    [B, C, H, W] to logits [B, num_classes]. 2,236,682 parameters at width 1, 3 channels and 10
    classes.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, width: float = 1.0) -> None:
        super().__init__()
        check_positive("width", width, 32)
        inner = rounded(32 * width)
        layers: list[nn.Module] = [_block(input_shape[0], inner, 3)]
        for expansion, channels, blocks, stride in _STAGES:
            outer = rounded(channels * width)
            for number in range(blocks):
                first = stride if number == 0 else 1
                layers.append(InvertedResidual(inner, outer, first, expansion))
                inner = outer
        last = rounded(1280 * max(1.0, width))
        self.features = nn.Sequential(*layers, _block(inner, last, 1))
        self.classifier = nn.Linear(last, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, inputs: Tensor) -> Tensor:
        features = F.adaptive_avg_pool2d(self.features(inputs), 1)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def rounded(channels: float) -> int:
    """The multiple of 8 nearest to `channels`, at least 8 and at least 90 % of `channels`."""
    multiple = max(8, int(channels + 4) // 8 * 8)
    return multiple if multiple >= 0.9 * channels else multiple + 8


def _block(inner: int, outer: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inner, outer, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outer), nn.ReLU6())
