"""Importance of weights: the change of the loss without them, to first order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from compressbench.core.types import Context
from compressbench.core.validation import check_integer
from compressbench.pruning.criteria.gradients import gradient_sums


@dataclass(frozen=True)
class Taylor:
    """Mean over batches of (w g)², where g is the gradient of the batch's mean cross-entropy.

    The importance of a channel is the sum over its weights. Uses `images` training images with
    labels, not augmented, in batches of `batch_size`, which changes the scores. Molchanov et al.
    2019 (arXiv:1906.10771, equations 7 and 8).
    """

    work: ClassVar[tuple[float, float]] = (1.0, 0.0)  # one forward and backward pass per image

    images: int = 1024
    batch_size: int = 32

    def __post_init__(self) -> None:
        check_integer("images", self.images, 1)
        check_integer("batch_size", self.batch_size, 1)

    def of_model(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor]:
        def part(weight: Tensor, gradient: Tensor, images: int) -> Tensor:
            return (weight * gradient).square()

        sums = gradient_sums(model, layers, context, self.images, self.batch_size, part)
        return {name: (total / sums.batches).float() for name, total in sums.parts.items()}
