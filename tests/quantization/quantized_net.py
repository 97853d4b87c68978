"""A small network for the tests of quantization."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core.types import TRAINED, Artifact, Context, DataSpec, Runtime, Split
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.quantize import Quantize
from compressbench.quantization.rounding.nearest import Nearest


@dataclass(frozen=True)
class Noise:
    images: int = 96

    @property
    def spec(self) -> DataSpec:
        return DataSpec("noise", (2, 8, 8), ("a", "b", "c"), (0.5, 0.5), (0.25, 0.25))

    def split(self, name: str) -> Split:
        assert name == "train", "only training images may be seen"
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randint(0, 256, (self.images, 2, 8, 8), generator=generator)
        return Split(inputs.to(torch.uint8), torch.arange(self.images) % 3)

    def prepare(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs.float() / 255 - 0.5) / 0.25

    def augment(self, inputs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        raise AssertionError("calibration images are not augmented")


class Net(nn.Module):
    """Grouped and depthwise convolutions, an addition, BatchNorm, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.bn1(self.stem(x)))
        x = F.relu(self.bn2(self.grouped(self.depthwise(x))) + x)
        return self.fc(x.mean((2, 3)))


def quantized_layers(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if hasattr(m, "weight_scale")}


def build(config) -> object:
    module, _, name = config["_target_"].rpartition(".")
    options = {k: v for k, v in config.items() if k != "_target_"}
    return getattr(importlib.import_module(module), name)(**options)


def context(**runtime) -> Context:
    return Context(Noise(), Runtime(**runtime), 3, Path(), build)


def start(model: nn.Module | None = None) -> Artifact:
    torch.manual_seed(0)
    net = Net() if model is None else model
    return Artifact(net.eval(), {"_target_": "Net"}, (), frozenset({TRAINED}))


def stage(activation=None, **options) -> Quantize:
    sizes = {"batchnorm_images": 64, "calibration_images": 48, "batch_size": 16}
    return Quantize(Nearest(MinMax()), activation, **(sizes | options))


def images() -> torch.Tensor:
    return torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(9))
