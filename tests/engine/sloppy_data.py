"""Datasets whose manifests say nothing, as a user may write them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from compressbench.core.types import DataSpec, Split


@dataclass(frozen=True)
class Grey:
    """Random images of two classes, each divided by 255."""

    seed: int = 0
    mean: float = 0.0
    unused: object = None

    @property
    def spec(self) -> DataSpec:
        return DataSpec("grey", (1, 8, 8), ("a", "b"), (0.0,), (1.0,))

    def manifest(self):
        return {"name": "mine"}

    def verify(self):
        pass

    def split(self, name):
        drawn = torch.Generator().manual_seed(self.seed + len(name))
        inputs = torch.randint(0, 256, (20, 1, 8, 8), generator=drawn, dtype=torch.uint8)
        return Split(inputs, torch.arange(20) % 2)

    def prepare(self, inputs):
        return inputs.float() / 255 - self.mean

    def augment(self, inputs, generator):
        return inputs


class Centred(Grey):
    def prepare(self, inputs):
        return super().prepare(inputs) - 0.5


class Flipped(Grey):
    """Differs in training alone."""

    def augment(self, inputs, generator):
        return inputs.flip(3)


class Noisy(Grey):
    """`prepare` draws from a generator of torch."""

    def prepare(self, inputs):
        return super().prepare(inputs) + torch.randn(inputs.shape)


class Unsteady(Grey):
    """`prepare` draws from where no seed reaches."""

    calls: ClassVar[list[int]] = [0]

    def prepare(self, inputs):
        self.calls[0] += 1
        return super().prepare(inputs) + self.calls[0]


class OtherMetric(Grey):
    @property
    def spec(self) -> DataSpec:
        return DataSpec("grey", (1, 8, 8), ("a", "b"), (0.0,), (1.0,), "macro_f1")


class Broken(Grey):
    def prepare(self, inputs):
        return super().prepare(inputs).view(-1, 7)


class OfTensors(Grey):
    @property
    def spec(self) -> DataSpec:
        return DataSpec("grey", (1, 8, 8), ("a", "b"), (torch.tensor(0.5),), (1.0,))


Shifted = partial(Grey, mean=0.1)
