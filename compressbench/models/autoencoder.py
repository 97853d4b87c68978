"""Fully connected auto-encoder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.validation import check_integer


class Autoencoder(nn.Module):
    """Linear layers of the widths `hidden`, the last of which is the code, and back again, with
    ReLU in between (Hinton and Salakhutdinov 2006, "Reducing the dimensionality of data with neural
    networks").

    Maps [B, *input_shape] to the same shape.
    """

    def __init__(self, input_shape: Sequence[int], hidden: Sequence[int] = (32, 8)) -> None:
        super().__init__()
        if not isinstance(hidden, (list, tuple)) or not hidden:
            raise UserError(f"hidden must be a list of widths, got {hidden!r}")
        for width in hidden:
            check_integer("a width in hidden", width, 1)
        widths = [math.prod(input_shape), *hidden, *reversed(hidden[:-1]), math.prod(input_shape)]
        layers: list[nn.Module] = []
        for inner, outer in itertools.pairwise(widths):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
        self.flatten, self.layers = nn.Flatten(), nn.Sequential(*layers[:-1])
        self.back = nn.Unflatten(1, tuple(input_shape))

    def forward(self, inputs: Tensor) -> Tensor:
        again: Tensor = self.back(self.layers(self.flatten(inputs)))
        return again
