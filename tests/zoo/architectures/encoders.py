"""Encoders made from the kinds of attention, and hybrids with convolutions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.zoo.architectures.parts import Pooled, conv_act
from tests.zoo.architectures.transformers import (
    Attention,
    Encoder,
    Experts,
    FilledMask,
    GeGLU,
    GroupedQueries,
    InfinityMask,
    LearntBias,
    LinearAttention,
    LinearBias,
    Perceptron,
    RootMeanSquareNorm,
    Rotary,
    SmallestMask,
    SwiGLU,
    TorchAttention,
)


class AlibiEncoder(Encoder):
    attention = LinearBias


class RelativeEncoder(Encoder):
    attention = LearntBias


class InfinityMaskEncoder(Encoder):
    attention = InfinityMask


class SmallestMaskEncoder(Encoder):
    attention = SmallestMask


class FilledMaskEncoder(Encoder):
    attention = FilledMask


class Llama(Encoder):
    """Rotary grouped queries, SwiGLU, root mean square norms."""

    attention, perceptron, norm = Rotary, SwiGLU, RootMeanSquareNorm


class GroupedQueryEncoder(Encoder):
    attention, perceptron = GroupedQueries, GeGLU


class LinearEncoder(Encoder):
    attention = LinearAttention


class TorchAttentionEncoder(Encoder):
    attention = TorchAttention


class MixtureOfExperts(Encoder):
    perceptron = Experts


class TorchEncoder(nn.Module):
    """torch's own layer."""

    def __init__(self, input_shape, num_classes, width=20) -> None:
        super().__init__()
        self.embed = nn.Linear(input_shape[0] * input_shape[2], width)
        layer = nn.TransformerEncoderLayer(width, 4, 36, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.encoder(self.embed(x.transpose(1, 2).flatten(2))).mean(1))


class Windows(nn.Module):
    """Attention within windows, then within shifted ones; patches are merged (Swin)."""

    def __init__(self, input_shape, num_classes, width=16, heads=2) -> None:
        super().__init__()
        self.patch = nn.Conv2d(input_shape[0], width, 2, stride=2)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attend = nn.ModuleList(Attention(width, heads) for _ in range(2))
        self.mlp = Perceptron(width, 26)
        self.merge_norm = nn.LayerNorm(4 * width)
        self.merge = nn.Linear(4 * width, 2 * width, bias=False)
        self.fc = nn.Linear(2 * width, num_classes)

    def windowed(self, x, attend):
        batch, height, width, channels = x.shape
        x = x.view(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        x = attend(x.reshape(-1, 4, channels))
        x = x.view(batch, height // 2, width // 2, 2, 2, channels).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(batch, height, width, channels)

    def forward(self, x):
        x = self.patch(x).permute(0, 2, 3, 1)
        x = x + self.windowed(self.norms[0](x), self.attend[0])
        y = torch.roll(self.norms[1](x), (-1, -1), (1, 2))
        x = x + torch.roll(self.windowed(y, self.attend[1]), (1, 1), (1, 2))
        x = x + self.mlp(x)
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        x = self.merge(self.merge_norm(torch.cat(corners, -1)))
        return self.fc(x.mean((1, 2)))


class CoAtNet(nn.Module):
    """Convolutions first, attention afterwards."""

    def __init__(self, input_shape, num_classes, width=24) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_act(input_shape[0], 18), conv_act(18, width, stride=2))
        self.depthwise = conv_act(width, width, groups=width, act=nn.GELU)
        self.norm, self.attend = nn.LayerNorm(width), Attention(width, 3)
        self.mlp = Perceptron(width, 36)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        x = (x + self.depthwise(x)).flatten(2).transpose(1, 2)
        x = x + self.attend(self.norm(x))
        return self.fc((x + self.mlp(x)).mean(1))


class LearntQueries(nn.Module):
    """A few learnt queries read a map by cross attention (Perceiver, DETR)."""

    def __init__(self, input_shape, num_classes, width=22) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], 26, stride=2)
        self.queries = nn.Parameter(torch.randn(3, width))
        self.key, self.value = nn.Linear(26, width), nn.Linear(26, 18)
        self.fc1, self.fc2 = nn.Linear(18 * 3, 30), nn.Linear(30, num_classes)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        weights = (self.queries @ self.key(x).transpose(1, 2)).softmax(-1)
        return self.fc2(F.relu(self.fc1((weights @ self.value(x)).flatten(1))))


class ConvolutionalTokens(nn.Module):
    """Attention on a map whose queries and keys are strided convolutions (CvT, PVT)."""

    def __init__(self, input_shape, num_classes, width=20) -> None:
        super().__init__()
        self.stem = conv_act(input_shape[0], width)
        self.q = nn.Conv2d(width, width, 1)
        self.k, self.v = (nn.Conv2d(width, width, 2, stride=2) for _ in range(2))
        self.out = nn.Conv2d(width, width, 1)
        self.head = Pooled(width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        q, k, v = (f(x).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return self.head(F.relu(x + self.out(y)))
