"""Small U-Net for segmentation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.validation import check_integer


class SmallUnet(nn.Module):
    """Three resolutions down and up again, joined by concatenation (Ronneberger et al. 2015,
    arXiv:1505.04597), with nearest-neighbour upsampling.

    Maps [B, C, H, W] to scores [B, num_classes, H, W]; H and W are multiples of 4.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, width: int = 16) -> None:
        super().__init__()
        check_integer("width", width, 1)
        channels, *sizes = input_shape
        if len(sizes) != 2 or any(size % 4 for size in sizes):
            raise UserError(f"small_unet needs images of multiples of 4 pixels, got {sizes}")
        self.down1 = _double(channels, width)
        self.down2 = _double(width, 2 * width)
        self.bottom = _double(2 * width, 4 * width)
        self.up2 = _double(6 * width, 2 * width)
        self.up1 = _double(3 * width, width)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        first = self.down1(inputs)
        second = self.down2(F.max_pool2d(first, 2))
        bottom = self.bottom(F.max_pool2d(second, 2))
        wide = self.up2(torch.cat([second, F.interpolate(bottom, scale_factor=2.0)], 1))
        whole = self.up1(torch.cat([first, F.interpolate(wide, scale_factor=2.0)], 1))
        scores: Tensor = self.head(whole)
        return scores


def _double(inner: int, outer: int) -> nn.Sequential:
    """Two 3x3 convolutions with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for channels in (inner, outer):
        layers += [nn.Conv2d(channels, outer, 3, padding=1, bias=False), nn.BatchNorm2d(outer),
                   nn.ReLU()]  # fmt: skip
    return nn.Sequential(*layers)
