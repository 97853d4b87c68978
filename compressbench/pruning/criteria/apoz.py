"""Importance of channels: how often their outputs are not zero."""

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
    """1 - APoZ (average percentage of zeros): the share of an output channel's nonzero values.

    In [0, 1], over all positions of `images` training images; `batch_size` only bounds the
    memory. Values are taken after the BatchNorm, additions and activation that follow the layer;
    without a ReLU there are no zeros, and every channel scores 1. Each weight has the importance
    of its channel. Hu et al. 2016 (arXiv:1607.03250, equation 1).
    """

    comparable: ClassVar[bool] = False  # scores of different layers cannot be compared

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
