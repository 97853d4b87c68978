"""Accumulates second moments of a layer's inputs, which give the squared error of its outputs."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.distributed import sum_over_ranks
from compressbench.core.layers import output_rows

PATCH_BYTES = 32 * 2**20  # limit on the unfolded inputs held in memory


class Moments:
    """Second moments of one layer's inputs: enough to compute the squared error of its outputs.

    x are the inputs of the layer in the float model, x' those in the partly quantized model, and
    W is the float weight, with O outputs of K weights each in G groups. Summed over all
    positions, `second` [G, K, K] is x' x'^T, `shift` [G, O / G, K] is r x'^T and `missed`
    [G, O / G] is r^2, where r = W (x - x') is the error caused by rounding earlier layers.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.weight = layer.get_parameter("weight").detach()
        rows = self.rows(self.weight)
        self.second = rows.new_zeros(len(rows), rows.shape[2], rows.shape[2])
        self.shift = torch.zeros_like(rows)
        self.missed = rows.new_zeros(rows.shape[:2])

    def add_(self, clean: Tensor, seen: Tensor) -> None:
        """Add the layer's inputs x (`clean`) and x' (`seen`) for the same images."""
        rows = self.rows(self.weight)
        for x, x_seen in zip(chunks(self.layer, clean), chunks(self.layer, seen), strict=True):
            change = (x - x_seen) @ rows.mT
            self.second += x_seen.mT @ x_seen
            self.shift += change.mT @ x_seen
            self.missed += change.square().sum(dim=1)

    def sums(self) -> dict[str, Tensor]:
        """The tensors that `add_` changes, in place."""
        return {"second": self.second, "shift": self.shift, "missed": self.missed}

    def reduce_(self) -> None:
        """Sum over all ranks, so that every rank continues with the same moments."""
        self.second, self.shift, self.missed = (
            sum_over_ranks(values) for values in (self.second, self.shift, self.missed)
        )

    def error(self, weight: Tensor) -> Tensor:
        """Sum of (w x' - W x)^2 over all positions, for a candidate weight w; per output [O]."""
        change = self.rows(weight) - self.rows(self.weight)
        quadratic = ((change @ self.second) * change).sum(dim=2)
        return (quadratic - 2.0 * (change * self.shift).sum(dim=2) + self.missed).flatten()

    def rows(self, weight: Tensor) -> Tensor:
        """Reshape a weight [O, ..] to [G, O / G, K]."""
        return output_rows(self.layer, weight)


def chunks(layer: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    """Yield the inputs of a layer's dot products [G, positions, K], a few images at a time."""
    if isinstance(layer, nn.Linear):
        yield inputs.reshape(1, -1, inputs.shape[-1])
        return
    image_bytes = patches(layer, inputs[:1]).nbytes
    size = max(1, PATCH_BYTES // image_bytes)
    for start in range(0, len(inputs), size):
        yield patches(layer, inputs[start : start + size])


def patches(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Unfold inputs [B, C, ..] of a convolution to [G, positions, C / G * kernel].

    The last axis has the order of the layer's flattened weights. TypeError for other layers.
    """
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        raise TypeError(f"{type(layer).__name__} has no patches")
    windows = F.pad(inputs, _padding(layer), _PADDING_MODES[layer.padding_mode])
    axes = len(layer.kernel_size)
    for axis in range(axes):
        reach = (layer.kernel_size[axis] - 1) * layer.dilation[axis] + 1
        windows = windows.unfold(2 + axis, reach, layer.stride[axis])
        windows = windows[..., :: layer.dilation[axis]]
    order = (0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes))
    rows = windows.permute(order).reshape(-1, layer.groups, layer.weight[0].numel())
    return rows.transpose(0, 1)


_PADDING_MODES = {
    "zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular",
}  # fmt: skip


def _padding(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> list[int]:
    """Padding before and after each axis, last axis first, as F.pad takes it."""
    sides = []
    for axis in reversed(range(len(layer.kernel_size))):
        if isinstance(layer.padding, str):
            reach = (layer.kernel_size[axis] - 1) * layer.dilation[axis]
            total = reach if layer.padding == "same" else 0
            sides += [total // 2, total - total // 2]
        else:
            sides += [layer.padding[axis]] * 2
    return sides
