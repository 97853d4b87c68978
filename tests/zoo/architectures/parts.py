"""What the architectures share."""

from __future__ import annotations

from torch import Tensor, nn


def conv_norm(inner: int, outer: int, size: int = 3, **options) -> nn.Sequential:
    """A convolution of the same resolution without bias, and BatchNorm."""
    dilation = options.get("dilation", 1)
    padding = options.pop("padding", dilation * (size // 2))
    convolution = nn.Conv2d(inner, outer, size, padding=padding, bias=False, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(outer))


def conv_act(inner: int, outer: int, size: int = 3, act=nn.ReLU, **options) -> nn.Sequential:
    return nn.Sequential(*conv_norm(inner, outer, size, **options), act())


class Pooled(nn.Module):
    """A classifier on the mean of a map [B, C, H, W]."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, inner: int, gate=nn.Sigmoid, act=nn.ReLU) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce, self.expand = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(self.pool(x)))))


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map, as ConvNeXt permutes it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
