"""Fully connected network (multilayer perceptron)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.validation import check_integer


class Mlp(nn.Module):
    """Linear layers of the widths `hidden`, each with ReLU, and a linear classifier.

    Maps [B, *input_shape] to logits [B, num_classes].
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, hidden: Sequence[int] = (64, 32)
    ) -> None:
        super().__init__()
        if not isinstance(hidden, (list, tuple)):
            raise UserError(f"hidden must be a list of widths, got {hidden!r}")
        if len(hidden) > 100:
            raise UserError(f"hidden must have at most 100 widths, got {len(hidden)}")
        for width in hidden:
            check_integer("hidden: a width", width, 1, 2**16)
        widths = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for inner, outer in itertools.pairwise(widths):
            layers += [nn.Linear(inner, outer), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layers(inputs)
        return logits
