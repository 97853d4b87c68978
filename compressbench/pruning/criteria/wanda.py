"""Importance by weight and input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from compressbench.core.types import Context
from compressbench.core.validation import check_integer
from compressbench.pruning.criteria.inputs import input_squares


@dataclass(frozen=True)
class Wanda:
    """|w| ‖x‖₂, x what the weight is multiplied with, over `images` training images.

    In a convolution that are the unfolded patches: each kernel position of each input channel has
    a norm of its own. `batch_size` bounds the memory. The paper compares within an output, the
    scopes here within a layer or, over the layer's mean, all together.
    Sun et al. 2023 (arXiv:2306.11695, equation 1).
    """

    comparable: ClassVar[bool] = False  # between layers: their inputs have other scales

    images: int = 512
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_integer("images", self.images, 1)
        check_integer("batch_size", self.batch_size, 1)

    def of_model(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor]:
        squares = input_squares(model, layers, context, self.images, self.batch_size)
        return {
            name: layer.get_parameter("weight").detach().abs().cpu() * squares[name].sqrt()
            for name, layer in layers.items()
        }
