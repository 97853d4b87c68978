"""A network of awkward layers for the tests of criteria."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.types import Context, DataSpec, Runtime, Split

IMAGES = 22


@dataclass(frozen=True)
class Noise:
    @property
    def spec(self) -> DataSpec:
        return DataSpec("noise", (2, 7, 5), ("a", "b", "c"), (0.5, 0.5), (0.25, 0.25))

    def split(self, name: str) -> Split:
        assert name == "train", "only training images may be seen"
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randint(0, 256, (IMAGES, 2, 7, 5), generator=generator)
        return Split(inputs.to(torch.uint8), torch.arange(IMAGES) % 3)

    def prepare(self, inputs: Tensor) -> Tensor:
        return (inputs.float() / 255 - 0.5) / 0.25


class Net(nn.Module):
    """Strides, padding, dilation, groups, a shortcut, a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0))
        self.bn = nn.BatchNorm2d(4)
        self.group = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.twice = nn.Linear(4, 4)
        self.up = nn.ConvTranspose2d(4, 6, 2, groups=2)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.bn2(self.group(x)) + x)
        x = F.relu(self.twice(F.relu(self.twice(x.movedim(1, -1)))))
        return self.fc(F.relu6(self.up(x.movedim(-1, 1))).mean((2, 3)))


def context() -> Context:
    return Context(Noise(), Runtime(), 3, Path(), lambda config: config)


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    for norm in (model.bn, model.bn2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return model.eval()


def layers(model: nn.Module, *names: str) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name in names}


def images() -> tuple[Tensor, Tensor]:
    own = Noise()
    split = own.split("train")
    return own.prepare(split.inputs), split.targets


ALL = ("stem", "group", "twice", "up", "fc")


def seen_inputs(model: nn.Module, name: str) -> list[Tensor]:
    seen: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda m, a: seen.append(a[0]))
    with torch.no_grad():
        model(images()[0])
    handle.remove()
    return seen
