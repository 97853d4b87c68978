"""Importance of weights: their squares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from compressbench.core.types import Context


@dataclass(frozen=True)
class L2:
    """w² of each weight; the importance of a channel is the squared L2 norm of its weights.

    He et al. 2018 (arXiv:1808.06866) rank filters by their L2 norm.
    """

    def __call__(self, layers: Mapping[str, nn.Module], context: Context) -> dict[str, Tensor]:
        return {
            name: layer.get_parameter("weight").detach().square() for name, layer in layers.items()
        }
