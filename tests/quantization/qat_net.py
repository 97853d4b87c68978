"""A network and pictures for the tests of training on the grid."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from compressbench.config.instantiate import instantiate
from compressbench.core import edits
from compressbench.core.types import TRAINED, Artifact, Context, DataSpec, Runtime, Split
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.qat import QuantizeAware
from compressbench.quantization.trained.lsq import Lsq


@dataclass(frozen=True)
class Blobs:
    """Three kinds of noise that differ in brightness; augmentation moves single values."""

    images: int = 96

    spec = DataSpec("blobs", (2, 5, 5), ("a", "b", "c"), (0.5, 0.5), (0.25, 0.25))

    def split(self, name):
        assert name == "train", "only training images may be seen"
        generator = torch.Generator().manual_seed(1)
        targets = torch.arange(self.images) % 3
        noise = torch.randint(0, 180, (self.images, 2, 5, 5), generator=generator)
        return Split((noise + 30 * targets.view(-1, 1, 1, 1)).to(torch.uint8), targets)

    def prepare(self, inputs):
        return (inputs.float() / 255 - 0.5) / 0.25

    def augment(self, inputs, generator):
        return inputs + torch.randint(0, 9, inputs.shape, generator=generator).to(torch.uint8)


class Net(nn.Module):
    """Functions whose calls are counted (mul, div, clamp), a tied weight, a grouped layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)
        self.right.weight = self.left.weight
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = (self.grouped(x * 0.5) / 0.5).clamp(-1, 3) + x
        x = x.mean((2, 3))
        return self.fc(F.relu(self.right(F.relu(self.left(x)))) + x)


def context(folder, **options):
    return Context(Blobs(), Runtime(), 7, Path(folder), instantiate, **options)


def start() -> Artifact:
    torch.manual_seed(0)
    return Artifact(Net().eval(), {"_target_": "Net"}, (), frozenset({TRAINED}))


def masked() -> Artifact:
    given = start()
    torch.manual_seed(1)
    for layer in (given.model.stem, given.model.left):
        edits.set_mask_(layer, torch.rand(layer.weight.shape) < 0.5)
    return replace(given, edits=({"kind": "mask", "layers": ["stem", "left"]},))


def stage(weight=None, activation=None, **options) -> QuantizeAware:
    sizes = {"calibration_images": 48, "epochs": 2, "batch_size": 16, "bits": 3, "rules": []}
    sizes["optimizer"] = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
    return QuantizeAware(weight or Lsq(), activation, MinMax(), **(sizes | options))


def run(made, folder, given=None, **inputs):
    return made.run({"model": given or start(), **inputs}, context(folder))


def images():
    return torch.randn(9, 2, 5, 5, generator=torch.Generator().manual_seed(9))
