"""A user's own model, written without a look at the package."""

import torch
from torch import nn


class Gate(nn.Module):
    """Squeeze-excite: each channel times a weight in (0, 1) that depends on all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // 2, 1)
        self.excite = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))
        return x * torch.sigmoid(self.excite(weights))


class StrangerNet(nn.Module):
    """Stem, depthwise block with a gate, two branches put side by side, classifier."""

    def __init__(self, input_shape, num_classes, width=16, dropout=0.1):
        super().__init__()
        channels = input_shape[0]
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
        )
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, 2 * width, 1)
        self.gate = Gate(2 * width)
        self.wide = nn.Conv2d(2 * width, width, 3, padding=1)
        self.narrow = nn.Conv2d(2 * width, width, 1)
        self.mix = nn.Sequential(
            nn.Conv2d(2 * width, 2 * width, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(self.depthwise_norm(self.depthwise(x)))
        x = self.gate(torch.relu(self.pointwise(x)))
        x = torch.cat([torch.relu(self.wide(x)), torch.relu(self.narrow(x))], dim=1)
        x = torch.max_pool2d(self.mix(x), 2)
        return self.head(self.dropout(x.mean((2, 3))))
