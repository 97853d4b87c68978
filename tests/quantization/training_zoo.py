"""Networks that make other calls in training than in evaluation, without changing a value."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn import functional as F


class Dropped(nn.Module):
    """Gated residual blocks; in training, `how` adds calls within the model's own forward."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem = nn.Linear(5, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(3))
        self.gates = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.fc = nn.Linear(6, 3)

    def drop(self, y):
        if not self.training:
            return y
        ones = torch.ones(len(y), 1)
        match self.how:
            case "where":
                return torch.where(ones > 0, torch.div(y, 1.0), 0.0)
            case "mul":
                return y * ones
            case _:
                return F.relu(y) - F.relu(-y) + torch.sigmoid(y) * 0

    def forward(self, x):
        x = F.relu(self.stem(x))
        for block, gate in zip(self.blocks, self.gates, strict=True):
            x = x + self.drop(block(x) * torch.sigmoid(gate(x)))
        return self.fc(x)


class Auxiliary(nn.Module):
    """An auxiliary head, and the main head used once more, in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.aux = nn.Linear(5, 6), nn.Linear(6, 3)
        self.head = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))

    def forward(self, x):
        x = torch.tanh(self.stem(x))
        extra = torch.tanh(self.aux(x)).sum() + self.head(x * 0.5).sum() if self.training else 0.0
        return self.head(x * 2.0) * 1.0 + extra * 0.0


class Twice(nn.Module):
    """One block called twice, and a shared activation."""

    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()
        self.block = nn.Sequential(nn.Linear(5, 5), self.act)

    def forward(self, x):
        for _ in range(2):
            x = self.block(x) + x
        return self.act(x * 0.5) * 1.0


class Functional(nn.Module):
    """No submodules: parameters, loops and functions only."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, 5, 5))

    def forward(self, x):
        for weight in self.weights:
            x = F.relu(F.linear(x, weight)) + x
            if self.training:
                x = x + F.relu(x) * 0
        return x.mean(1, keepdim=True) * 1.0


def symbolic() -> nn.Module:
    """A Sequential as an fx graph, whose code is generated."""
    layers = [nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)]
    return fx.symbolic_trace(nn.Sequential(*layers))


class Skipping(nn.Module):
    """Block i adds 1 to channel i; in training each is skipped with probability `p`."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        for number, block in enumerate(self.blocks):
            nn.init.zeros_(block.weight)
            block.bias.data = torch.eye(4)[number]

    def forward(self, x):
        x = x * 0.0
        for block in self.blocks:
            if self.training and torch.rand(()) < self.p:
                continue
            x = x + block(x)
        return x * 1.0


class OtherPath(nn.Module):
    """Its training never reaches the tanh of `block`."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Linear(5, 5)

    def forward(self, x):
        x = self.block(x)
        return (F.relu(x) if self.training else torch.tanh(x)) * 1.0


class RandomLoop(nn.Module):
    """In training a call is repeated any number of times."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        for _ in range(int(torch.randint(1, 4, ())) if self.training else 2):
            x = F.relu(F.linear(x, self.weight))
        return x * 1.0
