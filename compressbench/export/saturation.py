"""Finds layers whose int8 weights would saturate the 16-bit sums of x86 CPUs without VNNI.

On such CPUs the instruction vpmaddubsw adds pairs of products of uint8 activations and int8
weights, a1 * w1 + a2 * w2, and saturates silently at 2**15 - 1. How often depends on the data: an
input image with a zero point near 128 saturates often, the output of a ReLU rarely. The count is
done in integer arithmetic on any machine, so the exported file does not depend on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.edits import integer_weight
from compressbench.export.lowering.integer import ActivationGrid

IMAGES, POSITIONS = 16, 512
TOLERATED = 1e-3  # share of outputs with a saturated sum
_LIMIT = 2**15 - 1


def may_saturate(layer: nn.Module) -> bool:
    """Whether a pair of products with activations of 255 can overflow int16; never for 7 bits."""
    return 2 * 255 * int(integer_weight(layer).abs().max()) > _LIMIT


def layer_inputs(
    model: nn.Module, layers: Iterable[str], images: Tensor
) -> dict[str, list[Tensor]]:
    """The input of every call of each of `layers` when `model` runs on `images` [B, ...]."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def record(name: str) -> torch.utils.hooks.RemovableHandle:
        return model.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs: seen[name].append(inputs[0])
        )

    handles = [record(name) for name in seen]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def saturates(layer: nn.Module, calls: Sequence[Tensor], grids: Sequence[ActivationGrid]) -> bool:
    """Whether more than a share `TOLERATED` of the layer's outputs contain a saturating sum.

    A depthwise convolution never saturates: its kernel multiplies in 16 bits and adds in 32. A
    layer that is not an `nn.Conv2d`, or whose calls do not match `grids` one to one, is assumed to
    saturate.
    """
    if not isinstance(layer, nn.Conv2d) or len(calls) != len(grids):
        return True
    if layer.groups > 1 and layer.in_channels == layer.groups:
        return False
    pairs = zip(calls, grids, strict=True)
    return any(saturated_share(layer, values, grid) > TOLERATED for values, grid in pairs)


def saturated_share(layer: nn.Conv2d, values: Tensor, grid: ActivationGrid) -> float:
    """Share of (position, output channel) pairs with an overflowing sum; positions are sampled."""
    quantized = torch.round(values / grid.scale) + grid.zero_point
    columns = _columns(layer, quantized, grid.zero_point)
    columns = columns[:: max(1, len(columns) // POSITIONS)]
    weight = integer_weight(layer).float().flatten(2).transpose(1, 2)  # [O, kernel, in / groups]
    outputs = len(weight) // layer.groups
    over = [
        _over(columns[:, :, g].flatten(1), weight[g * outputs : (g + 1) * outputs].flatten(1))
        for g in range(layer.groups)
    ]
    return float(torch.cat(over, dim=1).double().mean())


def _columns(layer: nn.Conv2d, values: Tensor, zero_point: int) -> Tensor:
    """Patches in the kernel's reading order: [positions, kernel, groups, in / groups]."""
    if isinstance(layer.padding, str):
        height, width = (
            d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        )
        sides = (width // 2, width - width // 2, height // 2, height - height // 2)
        padding = sides if layer.padding == "same" else (0, 0, 0, 0)
    else:
        padding = (layer.padding[1], layer.padding[1], layer.padding[0], layer.padding[0])
    padded = F.pad(values, padding, value=float(zero_point))
    columns = F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)
    batch, _, positions = columns.shape
    shape = (batch, layer.groups, layer.in_channels // layer.groups, -1, positions)
    return columns.reshape(shape).permute(0, 4, 3, 1, 2).flatten(0, 1)


def _over(columns: Tensor, weight: Tensor) -> Tensor:
    """Whether any pair of products overflows int16, bool [positions, outputs]."""
    odd = columns.shape[1] % 2
    first, second = (F.pad(t, (0, odd)).reshape(len(t), -1, 2) for t in (columns, weight))
    over = torch.zeros(len(columns), len(weight), dtype=torch.bool)
    for channel, row in enumerate(second):  # one output at a time, to bound memory
        over[:, channel] = ((first * row).sum(2).abs() > _LIMIT).any(1)
    return over


def wide_layers(
    model: nn.Module, images: Tensor, grids: Mapping[str, Sequence[ActivationGrid]]
) -> set[str]:
    """The layers of `grids` that need uint8 weights; `grids` has one input grid per call."""
    calls = layer_inputs(model, grids, images)
    return {
        name
        for name, of_calls in grids.items()
        if saturates(model.get_submodule(name), calls[name], of_calls)
    }
