"""The integer weights of an artifact, as the lowering passes carry them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from torch import nn

from compressbench.artifact import integer_weight, weight_bits
from compressbench.core import Artifact, CheckFailedError


@dataclass(frozen=True)
class WeightGrid:
    """`weight = scale * integers`: integers int8 [O, ...], scale float64 [O] or []."""

    integers: NDArray[np.int8]
    scale: NDArray[np.float64]
    bits: int

    def per_channel(self) -> WeightGrid:
        return replace(self, scale=np.broadcast_to(self.scale, len(self.integers)).copy())

    def times(self, factor: NDArray[np.float64]) -> WeightGrid:
        """The grid of `factor[:, None] * weight`: signs go into the integers, which are symmetric.

        A channel whose factor is zero becomes zero integers with scale 1.
        """
        sign = np.sign(factor).astype(np.int8).reshape(-1, *[1] * (self.integers.ndim - 1))
        scale = np.where(factor == 0.0, 1.0, self.per_channel().scale * np.abs(factor))
        return replace(self, integers=self.integers * sign, scale=scale)


Grids = Mapping[str, WeightGrid]  # by the name of the weight's initializer


def read_grids(artifact: Artifact, graph: ir.Graph) -> tuple[dict[str, WeightGrid], dict[str, str]]:
    """The grids by initializer, and the initializer of each quantized layer.

    Raise CheckFailedError naming a quantized layer whose weight the graph does not read.
    """
    grids: dict[str, WeightGrid] = {}
    owners: dict[str, str] = {}
    for layer, bits in weight_bits(artifact.edits).items():
        name = _initializer(artifact.model, layer, graph)
        module = artifact.model.get_submodule(layer)
        scale = module.get_buffer("weight_scale").double().flatten().numpy()
        exact: NDArray[Any] = scale.reshape(()) if scale.size == 1 else scale
        grids[name] = WeightGrid(integer_weight(module).numpy().astype(np.int8), exact, bits)
        owners[layer] = name
    return grids, owners


def _initializer(model: nn.Module, layer: str, graph: ir.Graph) -> str:
    wanted = model.get_submodule(layer).weight
    for name, parameter in model.named_parameters(remove_duplicate=False):
        value = graph.initializers.get(name)
        if parameter is wanted and value is not None and value.uses():
            return name
    raise CheckFailedError(f"{layer}: its quantized weight is not in the exported graph")
