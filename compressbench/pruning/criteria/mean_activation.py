"""Importance of channels: the mean absolute value of their outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressbench.core.types import Context
from compressbench.core.validation import check_integer
from compressbench.pruning.criteria.outputs import channel_means


@dataclass(frozen=True)
class MeanActivation:
    """Mean |a| of each output channel over `images` training images and all positions.

    a is taken after the BatchNorm, additions and activation that follow the layer. Each weight
    has the importance of its channel; `batch_size` only bounds the memory. Molchanov et al. 2017
    (arXiv:1611.06440, section 2.2) rank feature maps by their mean activation.
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
        return channel_means(model, layers, context, self.images, self.batch_size, torch.abs)
