"""A weight counts as used where an output can depend on it, however its values get there."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.quantization.codebook import Codebook
from compressbench.quantization.grids.scheme import quantizable
from compressbench.quantization.grids.weight_uses import without_effect
from tests.quantization.quantized_net import Noise, stage


class Ways(nn.Module):
    """Five linear layers; the output does not depend on `lost`."""

    def __init__(self) -> None:
        super().__init__()
        names = ("plain", "routed", "written", "branch", "lost")
        for name in names:
            self.add_module(name, nn.Linear(128, 3))

    def forward(self, x):
        x = x.flatten(1)
        y = self.plain(x)
        buffer = torch.zeros(len(x), 6)
        buffer[:, 3:] = self.written(x)
        y = y + buffer.view(-1, 2, 3).sum(1)
        y += F.one_hot(self.routed(x).argmax(1), 3)
        z = self.lost(x) + y
        del z
        if float(self.branch(x).sum()) > 1e9:
            y = -y
        return y


def test_weights_without_effect_are_those_that_no_change_of_theirs_shows():
    model, inputs = Ways().eval(), torch.randn(7, 2, 8, 8)
    idle = without_effect(model, inputs)
    names = {n for n, p in model.named_parameters() if id(p) in idle}
    assert names == {"lost.weight", "lost.bias"}
    expected = model(inputs)
    for name, layer in model.named_children():
        kept = layer.weight.detach().clone()
        with torch.no_grad():
            layer.weight.copy_(1e12 * kept.abs() * inputs.flatten(1).sum(0).sign())
            changed = not torch.equal(model(inputs), expected)
            layer.weight.copy_(kept)
        assert changed == (name != "lost"), name


def test_a_layer_without_effect_is_left_in_float_with_the_reason():
    order, reasons = quantizable(Ways().eval(), Noise().spec)
    assert order == ["plain", "written", "routed", "branch"]
    assert reasons["lost"] == "no output depends on it"


@pytest.mark.parametrize("made", [stage(), Codebook(4)], ids=["quantize", "codebook"])
def test_a_model_without_layers_is_refused_when_planned(made):
    class Matrix(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.factors = nn.Parameter(torch.randn(128, 3))

        def forward(self, x):
            return x.flatten(1) @ self.factors

    with pytest.raises(UserError, match="found no") as caught:
        made.check_model(Matrix(), Noise().spec)
    assert ": :" not in str(caught.value)
