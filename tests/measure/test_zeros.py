"""Pruned weights that are not zero where the model computes with them are found."""

from __future__ import annotations

import torch
from torch import nn

from compressbench.core.edits import apply_edit_
from compressbench.measure.zeros import lost_zeros
from tests.zoo.architectures.norms import StandardizedConv2d


class Scaled(nn.Linear):
    """Changes its weight, but leaves zeros."""

    def forward(self, x):
        return nn.functional.linear(x, 0.5 * self.weight, bias=self.bias)


def test_layers_that_change_their_zeros_are_named():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), StandardizedConv2d(4, 5, 3), nn.Flatten(), nn.Linear(45, 6),
        Scaled(6, 3), nn.Linear(3, 2),
    )  # fmt: skip
    layers = ["0", "1", "3", "4"]
    with torch.no_grad():
        for name in layers:
            model.get_submodule(name).weight[0].zero_()
    apply_edit_(model, {"kind": "mask", "layers": layers})
    for name in layers:
        weight = model.get_submodule(name).weight
        model.get_submodule(name).weight_mask.copy_(weight != 0)
    assert lost_zeros(model, torch.randn(1, 1, 7, 7)) == []  # a whole row stays zero
    with torch.no_grad():
        model[1].weight[1, 0].zero_()
        model[1].weight_mask[1, 0] = False
    assert lost_zeros(model, torch.randn(1, 1, 7, 7)) == ["1"]
