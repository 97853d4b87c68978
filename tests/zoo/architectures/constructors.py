"""Classes whose constructors take other arguments than ours."""

from __future__ import annotations

from torch import nn

from tests.zoo.architectures.parts import Pooled, conv_act


class PickyConstructor(nn.Module):
    """The arguments of many repositories, not ours."""

    def __init__(self, in_channels: int = 3, classes: int = 1000, width: int = 18) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_act(in_channels, width), conv_act(width, 22))
        self.head = Pooled(22, classes)

    def forward(self, x):
        return self.head(self.body(x))


class OpaqueConstructor(nn.Module):
    """Arguments that nobody can guess."""

    def __init__(self, depth: int, plan: list) -> None:
        super().__init__()
        self.fc = nn.Linear(depth, len(plan))

    def forward(self, x):
        return self.fc(x.flatten(1))
