"""Importance of channels by how often they are not zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from compressbench.core.types import Context
from compressbench.core.validation import check_integer
from compressbench.pruning.criteria.outputs import channel_means


@dataclass(frozen=True)
class Apoz:
    """1 - APoZ: the share of an output channel's values that are not zero, over `images` training
    images and all positions, in [0, 1].

    The values are those behind the layer's BatchNorm, additions and activation; where no ReLU
    makes zeros, every channel has 1. Each weight has the importance of its channel.
    Hu et al. 2016 (arXiv:1607.03250, equation 1).
    """

    comparable: ClassVar[bool] = False  # between layers

    images: int = 512
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_integer("images", self.images, 1)
        check_integer("batch_size", self.batch_size, 1)

    def of_model(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor]:
        return channel_means(model, layers, context, self.images, self.batch_size, _not_zero)


def _not_zero(values: Tensor) -> Tensor:
    return values != 0
