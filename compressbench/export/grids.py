"""Reads the integer weights of an artifact, in the form that the lowering passes use."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressbench.core.edits import codebook_bits, integer_weight, weight_bits, zero_point
from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Artifact


@dataclass(frozen=True)
class WeightGrid:
    """An integer weight tensor: `weight = scale * steps`.

    Attributes:
        steps: int16 [O, I, ...].
        scale: float64 []; or [O], one per output channel; or [O, G], one for each of G groups of
            I / G input channels.
        bits: Width of the grid.
        zero_point: int64 in the shape of `scale` for an asymmetric grid, where step + zero point is
            in [0, 2**bits - 1]; None for a symmetric grid.
        codebook: float64 [2**bits]. If given, the steps are indices into it,
            `weight = scale * codebook[steps]`, and the scale may be negative or zero.
    """

    steps: NDArray[np.int16]
    scale: NDArray[np.float64]
    bits: int
    zero_point: NDArray[np.int64] | None = None
    codebook: NDArray[np.float64] | None = None

    def per_channel(self) -> WeightGrid:
        """The same grid with one scale per output channel instead of one for the tensor."""
        if self.scale.ndim:
            return self
        return replace(
            self,
            scale=np.full(len(self.steps), self.scale),
            zero_point=None
            if self.zero_point is None
            else np.full(len(self.steps), self.zero_point),
        )

    def times(self, factor: NDArray[np.float64]) -> WeightGrid:
        """The grid of `factor[:, None] * weight`, with `factor` [O].

        A negative factor flips the sign of the steps and reflects an asymmetric grid. A factor of
        zero gives zero steps with scale 1.
        """
        each = self.per_channel()
        if self.codebook is not None:
            return replace(each, scale=each.scale * factor)
        along = factor.reshape(-1, *[1] * (each.scale.ndim - 1))
        sign = np.sign(factor).astype(np.int16).reshape(-1, *[1] * (self.steps.ndim - 1))
        zero_point = each.zero_point
        if zero_point is not None:
            zero_point = np.where(along < 0, (1 << self.bits) - 1 - zero_point, zero_point)
        return replace(
            each,
            steps=self.steps * sign,
            scale=np.where(along == 0.0, 1.0, each.scale * np.abs(along)),
            zero_point=zero_point,
        )

    def rows(self) -> NDArray[np.int16]:
        """The steps in the shape of the scale, plus a last axis of steps that share a scale."""
        return self.steps.reshape(*self.scale.shape, -1)


Grids = Mapping[str, WeightGrid]  # keyed by the name of the weight's initializer


def read_grids(
    artifact: Artifact, graph: ir.Graph, unused: Collection[str]
) -> tuple[dict[str, WeightGrid], dict[str, str]]:
    """Return the grids by initializer name, and the initializer name of each quantized layer.

    Layers in `unused` are left out. Raises CheckFailedError if the graph does not use the weight of
    another quantized layer.
    """
    grids: dict[str, WeightGrid] = {}
    owners: dict[str, str] = {}
    books = codebook_bits(artifact.edits)
    for layer, bits in weight_bits(artifact.edits).items():
        if layer in unused:
            continue
        name = _initializer(artifact.model, layer, graph)
        if name is None:
            raise CheckFailedError(f"{layer}: its quantized weight is not in the exported graph")
        read = _codebook if layer in books else _weight_grid
        grids[name] = read(artifact.model.get_submodule(layer), bits)
        owners[layer] = name
    return grids, owners


def _codebook(layer: nn.Module, bits: int) -> WeightGrid:
    book = layer.get_buffer("weight_codebook").numpy()
    codes = np.searchsorted(book, layer.get_parameter("weight").detach().numpy())
    one = np.array(1.0)
    return WeightGrid(codes.astype(np.int16), one, bits, codebook=book.astype(np.float64))


def _weight_grid(layer: nn.Module, bits: int) -> WeightGrid:
    scale = layer.get_buffer("weight_scale").double().numpy()
    shape: tuple[int, ...] = () if scale.size == 1 else scale.shape[:2]
    if shape and shape[1] == 1:
        shape = shape[:1]
    offset = zero_point(layer)
    return WeightGrid(
        integer_weight(layer).numpy(),
        scale.reshape(shape),
        bits,
        None if offset is None else offset.numpy().astype(np.int64).reshape(shape),
    )


def unused_layers(model: nn.Module, graph: ir.Graph, example: Tensor) -> set[str]:
    """The layers with a weight that the graph lacks, and that the model's output is free of.

    A layer may be called for nothing, or never. The proof is a weight of NaN, which any use passes
    on to the output.
    """
    weights = {n: getattr(m, "weight", None) for n, m in model.named_modules()}
    return {
        name
        for name, weight in weights.items()
        if isinstance(weight, nn.Parameter)
        and _initializer(model, name, graph) is None
        and _is_unused(model, name, example)
    }


def _is_unused(model: nn.Module, layer: str, example: Tensor) -> bool:
    spoilt = deepcopy(model).eval()
    with torch.no_grad():
        spoilt.get_submodule(layer).get_parameter("weight").fill_(torch.nan)
        return torch.equal(spoilt(example), deepcopy(model).eval()(example))


def _initializer(model: nn.Module, layer: str, graph: ir.Graph) -> str | None:
    """The name of the weight of `layer` in the graph, where it may be that of a tied layer."""
    wanted = model.get_submodule(layer).weight
    for name, parameter in model.named_parameters(remove_duplicate=False):
        value = graph.initializers.get(name)
        if parameter is wanted and value is not None and value.uses():
            return name
    return None
