"""Recurrent networks and convolutions over time: the rows of an image are the steps."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


def rows(x):
    """Images [B, C, H, W] as sequences [B, H, C * W]."""
    return x.transpose(1, 2).flatten(2)


class LSTMClassifier(nn.Module):
    def __init__(self, input_shape, num_classes, width=22) -> None:
        super().__init__()
        self.rnn = nn.LSTM(input_shape[0] * input_shape[2], width, batch_first=True)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.rnn(rows(x))[0][:, -1])


class GRUClassifier(nn.Module):
    """A convolution in front, both directions, the last state."""

    def __init__(self, input_shape, num_classes, width=14) -> None:
        super().__init__()
        self.conv = nn.Conv1d(input_shape[0] * input_shape[2], 18, 3, padding=1)
        self.rnn = nn.GRU(18, width, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        x = F.relu(self.conv(rows(x).transpose(1, 2))).transpose(1, 2)
        return self.fc(self.rnn(x)[0].mean(1))


class CellLoop(nn.Module):
    """A cell that Python calls for each step."""

    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__()
        self.width = width
        self.cell = nn.GRUCell(input_shape[0] * input_shape[2], width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        state = x.new_zeros(x.shape[0], self.width)
        for step in rows(x).unbind(1):
            state = self.cell(step, state)
        return self.fc(state)


class TemporalBlock(nn.Module):
    """Causal: zeros on the left only, in front of a dilated convolution."""

    def __init__(self, inner: int, outer: int, dilation: int) -> None:
        super().__init__()
        self.left = 2 * dilation
        self.conv = nn.Conv1d(inner, outer, 3, dilation=dilation)
        self.norm = nn.BatchNorm1d(outer)
        self.short = nn.Conv1d(inner, outer, 1) if inner != outer else nn.Identity()

    def forward(self, x):
        y = F.relu(self.norm(self.conv(F.pad(x, (self.left, 0)))))
        return F.relu(y + self.short(x))


class TemporalConvolutions(nn.Module):
    def __init__(self, input_shape, num_classes, width=18) -> None:
        super().__init__()
        inner = input_shape[0] * input_shape[2]
        self.blocks = nn.Sequential(TemporalBlock(inner, width, 1), TemporalBlock(width, width, 2))
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.blocks(rows(x).transpose(1, 2))[:, :, -1])


class WaveNet(nn.Module):
    """tanh times sigmoid; each layer adds to the next input and to the sum of skips."""

    def __init__(self, input_shape, num_classes, width=14, skip=18) -> None:
        super().__init__()
        self.stem = nn.Conv1d(input_shape[0] * input_shape[2], width, 1)
        pair = lambda d: nn.Conv1d(width, width, 3, padding=d, dilation=d)  # noqa: E731
        self.filters = nn.ModuleList(pair(d) for d in (1, 2))
        self.gates = nn.ModuleList(pair(d) for d in (1, 2))
        self.back = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(2))
        self.skips = nn.ModuleList(nn.Conv1d(width, skip, 1) for _ in range(2))
        self.fc = nn.Linear(skip, num_classes)

    def forward(self, x):
        x = self.stem(rows(x).transpose(1, 2))
        total = 0
        for f, g, back, skip in zip(self.filters, self.gates, self.back, self.skips, strict=True):
            y = f(x).tanh() * g(x).sigmoid()
            total = total + skip(y)
            x = x + back(y)
        return self.fc(F.relu(total).mean(2))


class GatedConvolutions(nn.Module):
    """GLU halves the channels (speech, sensors)."""

    def __init__(self, input_shape, num_classes, width=14) -> None:
        super().__init__()
        inner = input_shape[0] * input_shape[2]
        self.a, self.b = (nn.Conv1d(n, 2 * width, 3, padding=1) for n in (inner, width))
        self.norm = nn.BatchNorm1d(2 * width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        x = F.glu(self.norm(self.a(rows(x).transpose(1, 2))), 1)
        return self.fc((x + F.glu(self.b(x), 1)).mean(2))


class KeywordSpotting(nn.Module):
    """Depthwise separable convolutions over time, as in DS-CNN."""

    def __init__(self, input_shape, num_classes, width=22) -> None:
        super().__init__()
        layers = [nn.Conv1d(input_shape[0] * input_shape[2], width, 3, padding=1, bias=False)]
        for _ in range(2):
            layers += [
                nn.BatchNorm1d(width), nn.ReLU(),
                nn.Conv1d(width, width, 3, padding=1, groups=width, bias=False),
                nn.BatchNorm1d(width), nn.ReLU(), nn.Conv1d(width, width, 1, bias=False),
            ]  # fmt: skip
        self.layers = nn.Sequential(*layers, nn.BatchNorm1d(width), nn.ReLU())
        self.pool, self.fc = nn.AdaptiveAvgPool1d(1), nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.pool(self.layers(rows(x).transpose(1, 2))).flatten(1))


class StatisticsPooling(nn.Module):
    """Mean and deviation over time, concatenated (x-vectors)."""

    def __init__(self, input_shape, num_classes, width=22) -> None:
        super().__init__()
        self.a = nn.Conv1d(input_shape[0] * input_shape[2], width, 3, padding=1)
        self.norm = nn.BatchNorm1d(width)
        self.fc1, self.fc2 = nn.Linear(2 * width, 26), nn.Linear(26, num_classes)

    def forward(self, x):
        x = F.relu(self.norm(self.a(rows(x).transpose(1, 2))))
        deviation = (x.var(2, unbiased=False) + 1e-5).sqrt()
        return self.fc2(F.relu(self.fc1(torch.cat([x.mean(2), deviation], 1))))
