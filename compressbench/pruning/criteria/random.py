"""Random importance: the baseline that every other criterion has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.layers import output_channels
from compressbench.core.types import Context

Unit = Literal["weight", "channel"]


@dataclass(frozen=True)
class Random:
    """Uniform scores in [0, 1), drawn with the stage's seed and the same on every rank.

    `unit` is "weight" for one draw per weight, or "channel" for one per output channel. Use
    "channel" to rank channels across layers: sums over many weights hardly differ.
    """

    unit: Unit = "weight"

    def __post_init__(self) -> None:
        if self.unit not in ("weight", "channel"):
            raise UserError(f'unit must be "weight" or "channel", got {self.unit!r}')

    def __call__(self, layers: Mapping[str, nn.Module], context: Context) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(context.seed)
        return {
            name: torch.rand(
                (output_channels(layer),)
                if self.unit == "channel"
                else layer.get_parameter("weight").shape,
                generator=generator,
            )
            for name, layer in layers.items()
        }
