"""Importance of weights: connection sensitivity (SNIP)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from compressbench.core.types import Context
from compressbench.core.validation import check_integer
from compressbench.pruning.criteria.gradients import gradient_sums


@dataclass(frozen=True)
class Snip:
    """|w g|, where g is the gradient of the mean cross-entropy over `images` training images.

    Unlike in `Taylor`, gradients of different batches with opposite signs cancel. Images have
    labels and are not augmented; `batch_size` only bounds the memory. Lee et al. 2019
    (arXiv:1810.02340, equation 6, not divided by its sum).
    """

    work: ClassVar[tuple[float, float]] = (1.0, 0.0)  # one forward and backward pass per image

    images: int = 1024
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_integer("images", self.images, 1)
        check_integer("batch_size", self.batch_size, 1)

    def of_model(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor]:
        def part(weight: Tensor, gradient: Tensor, images: int) -> Tensor:
            return images * gradient

        sums = gradient_sums(model, layers, context, self.images, self.batch_size, part)
        return {
            name: (sums.weights[name] * total / sums.images).abs().float()
            for name, total in sums.parts.items()
        }
