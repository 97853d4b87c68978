"""A small network for the tests of pruning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core import artifact
from compressbench.core.types import TRAINED, Artifact, Context, DataSpec, Runtime, Split
from compressbench.pruning.prune import Prune
from compressbench.quantization.observers.minmax import MinMax


@dataclass(frozen=True)
class Noise:
    images: int = 64

    @property
    def spec(self) -> DataSpec:
        return DataSpec("noise", (2, 8, 8), ("a", "b", "c"), (0.5, 0.5), (0.25, 0.25))

    def split(self, name: str) -> Split:
        assert name == "train", "only training images may be seen"
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randint(0, 256, (self.images, 2, 8, 8), generator=generator)
        return Split(inputs.to(torch.uint8), torch.arange(self.images) % 3)

    def prepare(self, inputs: Tensor) -> Tensor:
        return (inputs.float() / 255 - 0.5) / 0.25

    def augment(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        raise AssertionError("statistics are those of images that are not augmented")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(F.relu(self.conv(F.relu(self.bn(self.stem(x))))).mean((2, 3)))


LAYERS = ("stem", "conv", "fc")


WEIGHTS = 2 * 8 * 9 + 8 * 6 * 9 + 6 * 3


@dataclass(frozen=True)
class Smallest:
    """A criterion of this file: what is small matters most."""

    def __call__(self, layers: Mapping[str, nn.Module], context: Context) -> dict[str, Tensor]:
        return {name: -layer.weight.detach().abs() for name, layer in layers.items()}


def build(config) -> object:
    kinds = {"Net": Net, "MinMax": MinMax}
    return kinds[str(config["_target_"]).rpartition(".")[2]]()


def context() -> Context:
    return Context(Noise(), Runtime(), 3, Path(), build)


def trained(seed: int = 0, model: nn.Module | None = None) -> Artifact:
    torch.manual_seed(seed)
    made = (model or Net()).eval()
    return Artifact(made, {"_target_": "Net"}, (), frozenset({TRAINED}))


def pruned(stage: Prune, start: Artifact | None = None):
    outcome = stage.run({"model": start or trained()}, context())
    artifact.check(outcome.artifact)
    return outcome


def zeros(model: nn.Module) -> dict[str, int]:
    return {n: int((model.get_submodule(n).weight == 0).sum()) for n in LAYERS}
