"""Models with layers that hold channels together, or take part in no removal."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.pruning.channel_zoo import Head, conv


class PaddedShortcut(Head):
    """The shortcut of ResNets on CIFAR without parameters: every second pixel, zeros around."""

    def __init__(self) -> None:
        super().__init__(32)
        self.stem, self.a, self.b = conv(3, 16), conv(16, 24, stride=2), conv(24, 32)

    def forward(self, x):
        x = F.relu(self.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        return self.head(F.relu(short + self.b(F.relu(self.a(x)))))


class Normed(Head):
    """Normalizations of groups, instances and neighbours."""

    def __init__(self, norm: str) -> None:
        super().__init__(16)
        self.stem, self.a, self.last = conv(3, 16), nn.Conv2d(16, 32, 3), conv(32, 16)
        self.norm = {
            "groups": nn.GroupNorm(8, 32), "one group": nn.GroupNorm(1, 32),
            "each": nn.GroupNorm(32, 32), "instance": nn.InstanceNorm2d(32),
            "neighbours": nn.LocalResponseNorm(3),
        }[norm]  # fmt: skip

    def forward(self, x):
        return self.head(F.relu(self.last(F.relu(self.norm(self.a(F.relu(self.stem(x))))))))


class Grouped(Head):
    """Grouped convolutions: transposed, with several outputs for an input, and the reverse."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.last = conv(3, 16), conv(24, 16)
        self.up = nn.ConvTranspose2d(16, 24, 2, stride=2, groups=4)
        self.more = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.fewer = nn.Conv2d(32, 16, 3, padding=1, groups=16)

    def forward(self, x):
        x = self.fewer(F.relu(self.more(F.relu(self.stem(x)))))
        return self.head(F.relu(self.last(F.relu(self.up(x)))))


class Experts(nn.Module):
    """A mixture of perceptrons, weighed and summed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.router = nn.Linear(192, 16), nn.Linear(16, 3)
        self.up = nn.ModuleList(nn.Linear(16, 24) for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(24, 16) for _ in range(3))
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        x = F.relu(self.embed(x.flatten(1)))
        weights = self.router(x).softmax(-1)
        outputs = [down(F.relu(up(x))) for up, down in zip(self.up, self.down, strict=True)]
        if self.kind == "stacked":
            return self.fc((torch.stack(outputs, -2) * weights.unsqueeze(-1)).sum(-2))
        if self.kind == "einsum":
            return self.fc(torch.einsum("be,bec->bc", weights, torch.stack(outputs, 1)))
        best = weights.argmax(-1)
        return self.fc(sum(y * (best == i)[:, None] for i, y in enumerate(outputs)))


class Volume(nn.Module):
    """Three-dimensional and one-dimensional convolutions; statistics over time."""

    def __init__(self) -> None:
        super().__init__()
        self.deep, self.norm = nn.Conv3d(1, 16, 3, padding=1), nn.BatchNorm3d(16)
        self.line, self.act = nn.Conv1d(16, 24, 3), nn.PReLU(24)
        self.fc = nn.Linear(48, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.deep(x[:, None]))).mean(2).flatten(2)
        x = self.act(self.line(x))
        return self.fc(torch.cat([x.mean(-1), x.std(-1)], 1))


class Recurrent(nn.Module):
    """Layers of torch whose channels stay, between layers whose channels can go."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.embed = kind, nn.Linear(24, 24), nn.Linear(24, 16)
        self.lstm = nn.LSTM(16, 8, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
        self.last, self.fc = nn.Linear(16, 24), nn.Linear(24, 3)

    def forward(self, x):
        x = self.embed(F.relu(self.first(x.movedim(1, 2).flatten(2))))
        match self.kind:
            case "lstm":
                x = self.lstm(x)[0]
            case "attention":
                x = self.attention(x, x, x)[0]
            case _:
                x = self.encoder(x)
        return self.fc(F.relu(self.last(x.mean(1))))


class Tied(Head):
    """What is multiplied by itself, and code that computes a weight."""

    def __init__(self, kind: str) -> None:
        super().__init__(16)
        self.kind = kind
        self.stem, self.a, self.last = conv(3, 16), conv(16, 16), conv(16, 16)
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3) * 0.1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        match self.kind:
            case "gram":
                maps = self.a(x).flatten(2)
                x = (maps @ maps.transpose(1, 2)).softmax(-1) @ maps
                x = x.unflatten(2, (8, 8))
            case "held":
                x = F.conv2d(x, self.weight, padding=1)
            case "standardized":
                weight = self.a[0].weight
                x = F.conv2d(x, weight - weight.mean((1, 2, 3), keepdim=True), padding=1)
            case "unknown":
                x = torch.cdist(self.a(x), self.a(x))
            case "sorted":
                x = self.a(x).sort(1).values
            case "picked":
                x = self.a(x)[:, torch.arange(15, -1, -1)]
            case _:
                raise ValueError(self.kind)
        return self.head(F.relu(self.last(x)))
