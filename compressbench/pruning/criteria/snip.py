"""Importance by connection sensitivity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressbench.core.distributed import sum_over_ranks
from compressbench.core.types import Context
from compressbench.core.validation import check_integer
from compressbench.pruning.criteria.gradients import batch_gradients


@dataclass(frozen=True)
class Snip:
    """|w g|, g the gradient of the mean cross-entropy over all `images` training images.

    Unlike Taylor's, gradients of single batches that point in opposite directions cancel. Labels
    are used, images are not augmented; `batch_size` bounds the memory and changes nothing else.
    Lee et al. 2019 (arXiv:1810.02340, equation 6, not divided by its sum).
    """

    work: ClassVar[tuple[float, float]] = (1.0, 0.0)  # one step of training an image

    images: int = 1024
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_integer("images", self.images, 1)
        check_integer("batch_size", self.batch_size, 1)

    def of_model(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor]:
        device = context.runtime.device
        weights = [m.get_parameter("weight").detach().double() for m in layers.values()]
        weights = [weight.to(device) for weight in weights]
        totals = [torch.zeros_like(weight) for weight in weights]
        images = 0
        for gradients, count in batch_gradients(
            model, layers, context, self.images, self.batch_size
        ):
            images += count
            for total, gradient in zip(totals, gradients, strict=True):
                total += count * gradient.double()
        everyone = sum_over_ranks(torch.tensor(float(images), dtype=torch.float64, device=device))
        return {
            name: (weight * sum_over_ranks(total) / everyone).abs().float()
            for name, weight, total in zip(layers, weights, totals, strict=True)
        }
