"""VGG-small, a network without shortcuts from the literature on low-bit quantization."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.validation import check_integer


class VggSmall(nn.Module):
    """Six 3x3 convolutions of w, w, 2w, 2w, 4w and 4w channels, each with BatchNorm and ReLU.

    2x2 max pooling follows every second convolution; the classifier is one linear layer over all
    positions. w is `base_width`; 128 in Zhang et al. 2018 (LQ-Nets, arXiv:1807.10029). Maps
    [B, C, H, W] to logits [B, num_classes]; H and W are at least 8. With 3x32x32 images and 10
    classes: 4,656,512 weights in convolutions and classifier, 607,600,640 multiply-accumulates.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, base_width: int = 128) -> None:
        super().__init__()
        check_integer("base_width", base_width, 1, 2**14)
        inner, height, width = input_shape
        if min(height, width) < 8:
            raise UserError(f"vgg_small needs images of at least 8x8, got {height}x{width}")
        layers: list[nn.Module] = []
        for outer in (base_width, 2 * base_width, 4 * base_width):
            for _ in range(2):
                conv = nn.Conv2d(inner, outer, 3, padding=1, bias=False)
                layers += [conv, nn.BatchNorm2d(outer), nn.ReLU()]
                inner = outer
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inner * (height // 8) * (width // 8), num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(inputs).flatten(1))
        return logits
