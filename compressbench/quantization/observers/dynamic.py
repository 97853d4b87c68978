"""Activation ranges taken while the model runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from compressbench.core.activation_sites import find_readers
from compressbench.core.types import Edit


@dataclass(frozen=True)
class Dynamic:
    """8 bits from the smallest to the largest value of each tensor, zero included; no calibration.

    Only what a quantized convolution or linear layer reads is rounded, so additions and pooling
    stay in float. One range holds for a whole batch, as in ONNX DynamicQuantizeLinear.
    """

    def edit(self, model: nn.Module, example: Tensor, layers: Iterable[str]) -> Edit:
        """The `activation_grid` edit for the inputs of `layers`, whose weights are quantized."""
        return {
            "kind": "activation_grid",
            "dynamic": True,
            "sites": find_readers(model, example, layers),
            "bits": 8,
            "symmetric": False,
        }
