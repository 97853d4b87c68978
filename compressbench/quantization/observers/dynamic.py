"""Dynamic quantization: activation ranges computed at run time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from compressbench.core.activation_sites import find_readers
from compressbench.core.types import Edit


@dataclass(frozen=True)
class Dynamic:
    """8-bit activations with the range [min, max] of each tensor, including zero; no calibration.

    Only the inputs of quantized convolutions and linear layers are rounded, so additions and
    pooling stay in float. The range is that of the whole batch, as in ONNX DynamicQuantizeLinear.
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
