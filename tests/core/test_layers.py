"""Layers of a model: who owns a weight, and what a channel's weights are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compressbench.core.coverage import coverage
from compressbench.core.layers import output_rows, per_output, tied_modules, weight_owners


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head, self.other = nn.Embedding(5, 4), nn.Linear(4, 5), nn.Linear(4, 5)
        self.norm, self.again = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.head.weight = self.table.weight
        self.again.bias = self.norm.bias
        self.place = nn.Parameter(torch.zeros(2, 3))


def test_the_first_layer_owns_a_tied_weight():
    assert weight_owners(Tied(), ["other", "head", "table"]) == {
        "other": "other",
        "head": "head",
        "table": "head",
    }


def test_a_layer_that_is_the_model_owns_its_weight():
    assert weight_owners(nn.Linear(2, 3), [""]) == {"": ""}


def test_modules_are_tied_by_any_parameter():
    assert tied_modules(Tied()) == {"table", "head", "norm", "again"}
    assert tied_modules(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == set()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv1d(6, 4, 3),
        nn.Conv2d(6, 4, (2, 3), groups=2),
        nn.ConvTranspose1d(6, 4, 3),
        nn.ConvTranspose2d(6, 4, (2, 3), groups=2),
    ],
    ids=str,
)
def test_a_row_holds_the_weights_that_an_output_depends_on(layer):
    """Which those are is asked of the layer itself: they have a gradient in that output."""
    rows = output_rows(layer, layer.weight.detach())
    channels = rows.flatten(0, 1)
    axis = 1 if "Conv" in type(layer).__name__ else -1
    shape = (1, 6, 5, 5)[: layer.weight.ndim] if axis == 1 else (1, 6)
    outputs = layer(torch.rand(shape) + 1.0)
    assert rows.shape[0] == getattr(layer, "groups", 1)
    assert len(channels) == outputs.shape[axis]
    for number, row in enumerate(channels):
        channel = outputs.select(axis, number).sum()
        (gradient,) = torch.autograd.grad(channel, layer.weight, retain_graph=True)
        reached = layer.weight.detach()[gradient != 0]
        assert sorted(row.tolist()) == sorted(reached.tolist())


def test_one_value_for_each_output_broadcasts_over_the_weight():
    weight = torch.rand(4, 3, 2, 2)
    values = torch.arange(4.0)
    expected = torch.stack([w * v for w, v in zip(weight, values, strict=True)])
    assert torch.equal(weight * per_output(values, weight), expected)


def test_coverage_has_a_row_for_each_module_with_weights():
    rows = coverage(Tied(), {"other": (7, "changed")}, {"table": "looked up"}, "kept")
    assert [(row.layer, row.kind, row.total, row.touched, row.detail) for row in rows] == [
        ("model", "Tied", 6, 0, "kept: "),
        ("table", "Embedding", 20, 0, "kept: looked up"),
        ("head", "Linear", 20, 0, "kept: "),
        ("other", "Linear", 20, 7, "changed"),
    ]
