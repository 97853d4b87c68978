"""What the squared error of a layer's outputs needs to know of its inputs: sums of products."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.distributed import sum_over_ranks
from compressbench.core.layers import output_rows

PATCH_BYTES = 32 * 2**20  # of inputs unfolded at a time


class Moments:
    """What the squared error of one layer's outputs needs to know of its inputs.

    With G groups, O outputs and K weights of an output: `second` [G, K, K] is the sum of
    x' x'^T over all positions, `shift` [G, O / G, K] that of r x'^T and `missed` [G, O / G] that
    of r^2, where r = W (x - x') is what the earlier layers' rounding has changed.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.weight = layer.get_parameter("weight").detach()
        rows = self.rows(self.weight)
        self.second = rows.new_zeros(len(rows), rows.shape[2], rows.shape[2])
        self.shift = torch.zeros_like(rows)
        self.missed = rows.new_zeros(rows.shape[:2])

    def add_(self, clean: Tensor, seen: Tensor) -> None:
        """Take in the layer's inputs x (`clean`) and x' (`seen`) for the same images."""
        rows = self.rows(self.weight)
        for x, x_seen in zip(chunks(self.layer, clean), chunks(self.layer, seen), strict=True):
            change = (x - x_seen) @ rows.mT
            self.second += x_seen.mT @ x_seen
            self.shift += change.mT @ x_seen
            self.missed += change.square().sum(dim=1)

    def reduce_(self) -> None:
        """Sum up over the ranks: from here on all of them do the same."""
        self.second, self.shift, self.missed = (
            sum_over_ranks(values) for values in (self.second, self.shift, self.missed)
        )

    def error(self, weight: Tensor) -> Tensor:
        """Sum over all positions of (w x' - W x)^2, for each output [O]."""
        change = self.rows(weight) - self.rows(self.weight)
        quadratic = ((change @ self.second) * change).sum(dim=2)
        return (quadratic - 2.0 * (change * self.shift).sum(dim=2) + self.missed).flatten()

    def rows(self, weight: Tensor) -> Tensor:
        """[O, ..] -> [G, O / G, K]."""
        return output_rows(self.layer, weight)


def chunks(layer: nn.Module, inputs: Tensor) -> Iterator[Tensor]:
    """What the outputs of a layer are products with, [G, positions, K], a few images at a time."""
    if isinstance(layer, nn.Linear):
        yield inputs.reshape(1, -1, inputs.shape[-1])
        return
    one = patches(layer, inputs[:1])
    share = max(1, PATCH_BYTES // one.nbytes)
    for start in range(0, len(inputs), share):
        yield patches(layer, inputs[start : start + share])


def patches(layer: nn.Module, inputs: Tensor) -> Tensor:
    """[B, C, ..] -> [G, positions, C / G * kernel], in the order of the layer's weights."""
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
    """Before and after each axis, the last axis first, as F.pad wants it."""
    sides = []
    for axis in reversed(range(len(layer.kernel_size))):
        if isinstance(layer.padding, str):
            reach = (layer.kernel_size[axis] - 1) * layer.dilation[axis]
            total = reach if layer.padding == "same" else 0
            sides += [total // 2, total - total // 2]
        else:
            sides += [layer.padding[axis]] * 2
    return sides
