"""Importance of weights: their magnitude times the norm of their inputs (Wanda)."""

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
    """|w| ‖x‖₂, where x are the inputs that w is multiplied with, over `images` training images.

    In a convolution x are unfolded patches: each kernel position of each input channel has its
    own norm. `batch_size` only bounds the memory. The paper compares weights of one output; the
    scopes here compare weights of one layer, or of all layers after division by the layer's mean.
    Sun et al. 2023 (arXiv:2306.11695, equation 1).
    """

    comparable: ClassVar[bool] = False  # inputs of different layers differ in scale

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
