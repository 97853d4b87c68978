"""Norms, parametrizations, odd activations and products."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from tests.zoo.architectures.parts import Pooled, conv_act, conv_norm


class StandardizedConv2d(nn.Conv2d):
    """The weights of each output are standardized in each call."""

    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Stacked(nn.Module):
    """Stem, a layer of some kind, a last layer, pooled classifier."""

    def __init__(self, input_shape, num_classes, width=20) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], width)
        self.a = self.kind(width)
        self.last = conv_act(width, 26)
        self.head = Pooled(26, num_classes)

    def kind(self, width: int) -> nn.Module:
        raise NotImplementedError

    def forward(self, x):
        return self.head(self.last(F.relu(self.a(self.stem(x)))))


def plain(width: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, padding=1)


class WeightStandardization(Stacked):
    def kind(self, width):
        return nn.Sequential(StandardizedConv2d(width, width, 3, padding=1), nn.GroupNorm(5, width))


class GroupNormNet(Stacked):
    def kind(self, width):
        return nn.Sequential(plain(width), nn.GroupNorm(5, width), nn.ReLU(), plain(width))


class InstanceNormNet(Stacked):
    def kind(self, width):
        return nn.Sequential(plain(width), nn.InstanceNorm2d(width, affine=True))


class NoAffineNet(Stacked):
    def kind(self, width):
        return nn.Sequential(plain(width), nn.BatchNorm2d(width, affine=False))


class NoStatisticsNet(Stacked):
    """BatchNorm that normalises each batch, in use, too."""

    def kind(self, width):
        return nn.Sequential(plain(width), nn.BatchNorm2d(width, track_running_stats=False))


class ResponseNormNet(Stacked):
    def kind(self, width):
        return nn.Sequential(plain(width), nn.LocalResponseNorm(3))


class OldWeightNorm(Stacked):
    def kind(self, width):
        return weight_norm(plain(width))


class NewWeightNorm(Stacked):
    def kind(self, width):
        return parametrizations.weight_norm(plain(width))


class OldSpectralNorm(Stacked):
    def kind(self, width):
        return spectral_norm(plain(width))


class NewSpectralNorm(Stacked):
    def kind(self, width):
        return parametrizations.spectral_norm(plain(width))


class Orthogonal(Stacked):
    def kind(self, width):
        return parametrizations.orthogonal(nn.Conv2d(width, width, 1))


class PReLUNet(Stacked):
    def kind(self, width):
        return nn.Sequential(
            plain(width), nn.BatchNorm2d(width), nn.PReLU(width), plain(width), nn.PReLU()
        )


class ReflectionPads(Stacked):
    def kind(self, width):
        return nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3))


class CircularPads(Stacked):
    def kind(self, width):
        return nn.Conv2d(width, width, 3, padding=1, padding_mode="circular")


class Maxout(nn.Module):
    """The largest of two pieces."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__()
        self.a = conv_norm(input_shape[0], 2 * width)
        self.last, self.head = conv_act(width, 22), Pooled(22, num_classes)

    def forward(self, x):
        first, second = self.a(x).chunk(2, 1)
        return self.head(self.last(torch.maximum(first, second)))


class BilinearPooling(nn.Module):
    """The outer product of two branches, summed over the pixels."""

    def __init__(self, input_shape, num_classes) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], 18)
        self.a, self.b = conv_act(18, 10), conv_act(18, 12)
        self.fc = nn.Linear(120, num_classes)

    def forward(self, x):
        x = self.stem(x)
        a, b = self.a(x).flatten(2), self.b(x).flatten(2)
        return self.fc((a @ b.transpose(1, 2)).flatten(1) / 64)


class GramMatrix(nn.Module):
    """A map times itself, by einsum; signed square roots and a unit norm."""

    def __init__(self, input_shape, num_classes) -> None:
        super().__init__()
        self.stem, self.a = conv_act(input_shape[0], 14), conv_act(14, 10)
        self.fc = nn.Linear(100, num_classes)

    def forward(self, x):
        x = self.a(self.stem(x)).flatten(2)
        gram = torch.einsum("bip,bjp->bij", x, x).flatten(1) / 64
        return self.fc(F.normalize((gram.abs() + 1e-6).sqrt() * gram.sign()))


class SqueezeByMatmul(nn.Module):
    """Pooling weighted by a map, written as a product of matrices."""

    def __init__(self, input_shape, num_classes) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], 22)
        self.score = nn.Conv2d(22, 1, 1)
        self.fc1, self.fc2 = nn.Linear(22, 30), nn.Linear(30, num_classes)

    def forward(self, x):
        x = self.stem(x)
        weights = self.score(x).flatten(2).softmax(-1)
        pooled = torch.matmul(x.flatten(2), weights.transpose(1, 2)).squeeze(-1)
        return self.fc2(F.relu(self.fc1(pooled)))


class Highway(nn.Module):
    """A gate between a layer's output and its input."""

    def __init__(self, input_shape, num_classes, width=26) -> None:
        super().__init__()
        self.stem = nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], width)
        self.a, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        x = F.relu(self.stem(x.flatten(1)))
        gate = self.gate(x).sigmoid()
        return self.fc(gate * F.relu(self.a(x)) + (1 - gate) * x)


class Modulated(nn.Module):
    """A vector scales and shifts the channels of a map (FiLM)."""

    def __init__(self, input_shape, num_classes, width=20) -> None:
        super().__init__()
        self.stem, self.a = conv_act(input_shape[0], 14), conv_norm(14, width)
        self.film = nn.Linear(14, 2 * width)
        self.last, self.head = conv_act(width, 22), Pooled(22, num_classes)

    def forward(self, x):
        x = self.stem(x)
        scale, shift = self.film(x.mean((2, 3)))[:, :, None, None].chunk(2, 1)
        return self.head(self.last(F.relu(self.a(x) * (1 + scale) + shift)))


class Conv3dNet(nn.Module):
    """Three axes, without a bias in front of BatchNorm."""

    def __init__(self, input_shape, num_classes) -> None:
        super().__init__()
        self.a = nn.Conv3d(input_shape[0], 14, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(14)
        self.b = nn.Conv3d(14, 18, (1, 3, 3), padding=(0, 1, 1))
        self.fc = nn.Linear(18, num_classes)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x.unsqueeze(2))))
        return self.fc(F.relu(self.b(x)).mean((2, 3, 4)))


class FunctionalWeights(nn.Module):
    """Weights that belong to no layer."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], 14)
        self.kernel = nn.Parameter(torch.randn(width, 14, 3, 3) * 0.1)
        self.offset = nn.Parameter(torch.zeros(width))
        self.matrix = nn.Parameter(torch.randn(width, num_classes) * 0.2)

    def forward(self, x):
        x = F.relu(F.conv2d(self.stem(x), self.kernel, self.offset, padding=1))
        return x.mean((2, 3)) @ self.matrix
