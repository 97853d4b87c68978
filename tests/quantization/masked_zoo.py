"""Attention and gates whose ranges are dominated by constants, and nets with outliers."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


class Masked(nn.Module):
    """Rows of an image as tokens; how `kind` masks the scores of attention above the diagonal."""

    def __init__(self, kind: str, low: float = -math.inf) -> None:
        super().__init__()
        self.kind, self.low = kind, low
        self.embed, self.qkv, self.fc = nn.Linear(16, 12), nn.Linear(12, 36), nn.Linear(12, 3)
        above = torch.triu(torch.ones(8, 8), 1).bool()
        self.register_buffer("above", above)
        self.register_buffer("mask", torch.zeros(8, 8).masked_fill(above, low))

    def scores(self, q, k):
        scores = q @ k.transpose(1, 2) * 12**-0.5
        match self.kind:
            case "sum":
                return scores + self.mask
            case "sum of the mask":
                return self.mask + scores
            case "difference":
                return scores - (-self.mask)
            case "where":
                return torch.where(self.above, self.low, scores) * 1.0
            case "fill":
                return torch.cat([scores.masked_fill(self.above, self.low)], 1)
            case "replaced":
                return torch.where(self.above, self.low, scores) / 1.5
            case "computed":  # a mask that depends on the input
                hidden = (k.mean(2, keepdim=True) > 0).float().transpose(1, 2)
                return scores + (hidden + 0 * k.mean(2)[:, None]) * self.low
            case "number":
                return scores + self.low
            case _:
                return scores

    def forward(self, x):
        x = self.embed(x.transpose(1, 2).flatten(2))
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.kind == "attention":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)
        else:
            y = self.scores(q, k).softmax(-1) @ v
        return self.fc((x + y).mean(1))


class Gated(nn.Module):
    """Nothing absurd: nearly one-hot gates, constants of the size of the signal, wide ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 6, 3), nn.Linear(6, 3)
        self.position = nn.Parameter(torch.randn(6, 6, 6))

    def forward(self, x):
        x = self.conv(x) + self.position
        gate = (x.mean((2, 3)) * 60).softmax(1)
        x = F.relu(x * 300) * gate[:, :, None, None]
        return self.fc((1 - torch.sigmoid(x)).mean((2, 3)))


class Outlier(nn.Module):
    """One channel of the hidden layer is `factor` times as large as the others, and unused."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(2, 8, 3, bias=False), nn.ReLU()
        self.fc = nn.Linear(8, 3)
        with torch.no_grad():
            self.stem.weight[0] *= factor
            self.fc.weight[:, 0] = 0.0

    def forward(self, x):
        return self.fc(self.act(self.stem(x)).mean((2, 3)))
