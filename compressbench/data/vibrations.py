"""Synthetic vibrations of a machine, healthy or not: for auto-encoders that tell anomalies."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from compressbench.core.types import Split, SplitName
from compressbench.core.validation import check_integer
from compressbench.data.arrays import Arrays
from compressbench.data.partition import SPLITS
from compressbench.tasks.reconstruction import Reconstruction

HARMONICS = (1.0, 0.5, 0.25)  # amplitudes of the shaft's speed and its multiples
NOISE, KNOCK = 0.1, 1.2  # standard deviation of the noise, amplitude of a damaged bearing's knocks


def vibrations(
    windows: int = 2000, length: int = 64, signal_seed: int = 0, metric: str = "auc"
) -> Arrays:
    """Windows of an acceleration signal: three harmonics of a shaft that turns 3 to 5 times in a
    window, at a random phase, and noise. Anomalies, a third of validation and test and none of
    training, have knocks in addition: decaying bursts at a constant distance, as a damaged rolling
    bearing makes them (McFadden and Smith 1984).

    Args:
        windows: number for training; validation and test have a quarter of it each.
        length: values of a window, from 16.
        signal_seed: seed of the signals.
        metric: auc or mse.
    """
    check_integer("dataset.windows", windows, 8)
    check_integer("dataset.length", length, 16)
    check_integer("dataset.signal_seed", signal_seed, 0)
    options = {"windows": windows, "length": length, "seed": signal_seed}

    def read() -> Mapping[SplitName, Split]:
        return {name: _split(name, **options) for name in SPLITS}

    names = tuple(str(place) for place in range(length))
    return Arrays("vibrations", read, names, Reconstruction(), metric, options=options)


def _split(split: SplitName, windows: int, length: int, seed: int) -> Split:
    count = windows if split == "train" else max(3, windows // 4)
    generator = torch.Generator().manual_seed(seed * len(SPLITS) + SPLITS.index(split))
    time = torch.arange(length) / length
    turns = 3 + 2 * torch.rand(count, 1, generator=generator)
    phase = 2 * math.pi * torch.rand(count, 1, generator=generator)
    angle = 2 * math.pi * turns * time + phase
    signal = sum(a * torch.sin((k + 1) * angle) for k, a in enumerate(HARMONICS))
    signal = signal + NOISE * torch.randn(count, length, generator=generator)
    damaged = torch.zeros(count, 1) if split == "train" else _thirds(count)
    values = signal + damaged * _knocks(count, length, generator)
    return Split(values, torch.cat([damaged, values], 1))


def _thirds(count: int) -> Tensor:
    return (torch.arange(count) % 3 == 0).float()[:, None]


def _knocks(count: int, length: int, generator: torch.Generator) -> Tensor:
    """Bursts at every eighth of a window, from a random start, decaying within a few values."""
    period = length / 8
    start = period * torch.rand(count, 1, generator=generator)
    since = torch.remainder(torch.arange(length) - start, period)
    return KNOCK * torch.exp(-since) * torch.cos(math.pi * since)
