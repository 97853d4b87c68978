"""Importance of weights: their absolute values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from compressbench.core.types import Context


@dataclass(frozen=True)
class Magnitude:
    """|w| of each weight; the importance of a channel is the L1 norm of its weights.

    Han et al. 2015 (arXiv:1506.02626) for weights, Li et al. 2017 (arXiv:1608.08710) for channels.
    """

    def __call__(self, layers: Mapping[str, nn.Module], context: Context) -> dict[str, Tensor]:
        return {
            name: layer.get_parameter("weight").detach().abs() for name, layer in layers.items()
        }
