"""The count of saturating sums, against products added one pair at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from compressbench.core.edits import integer_weight
from compressbench.export.lowering.integer import ActivationGrid
from compressbench.export.saturation import saturated_share, saturates


def _layer(scale, **options):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, bias=False, **options)
    integers = (torch.randn_like(layer.weight) * scale).round().clamp(-127, 127)
    layer.weight.data = integers * 0.5
    layer.register_buffer("weight_scale", torch.full((6, 1, 1, 1), 0.5))
    return layer


def _reference(layer, values, zero_point):
    """Every output: channels last, pairs in order, each product as a Python integer."""
    weight = integer_weight(layer).numpy()
    values = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=zero_point)
    group_in, group_out = weight.shape[1], len(weight) // layer.groups
    found = []
    for image in values:
        for y in range(image.shape[1] - 2):
            for x in range(image.shape[2] - 2):
                for channel, kernel in enumerate(weight):
                    start = channel // group_out * group_in
                    patch = image[start : start + group_in, y : y + 3, x : x + 3]
                    products = [int(a) * int(w) for a, w in zip(
                        patch.transpose(1, 2, 0).ravel(), kernel.transpose(1, 2, 0).ravel(),
                        strict=True)]  # fmt: skip
                    sums = [sum(products[i : i + 2]) for i in range(0, len(products), 2)]
                    found.append(max(map(abs, sums)) > 32767)
    return float(np.mean(found))


@pytest.mark.parametrize(("groups", "zero_point"), [(1, 0), (2, 100)])
def test_the_share_is_that_of_a_plain_loop(groups, zero_point):
    layer = _layer(70.0, groups=groups, padding=1)
    generator = np.random.default_rng(0)
    quantized = generator.integers(0, 256, (2, 4, 6, 6))
    values = torch.tensor((quantized - zero_point) * 0.25, dtype=torch.float32)
    share = saturated_share(layer, values, ActivationGrid(0.25, zero_point))
    assert share == pytest.approx(_reference(layer, quantized, zero_point))
    assert 0 < share < 1


def test_seven_bits_never_saturate_and_eight_do():
    values = torch.full((1, 4, 6, 6), 255.0)
    for largest, expected in ((63, False), (127, True)):
        layer = _layer(0.0)
        layer.weight.data.fill_(largest * 0.5)
        assert saturates(layer, [values], [ActivationGrid(1.0, 0)]) is expected


def test_depthwise_is_exact():
    layer = nn.Conv2d(4, 4, 3, groups=4, bias=False)
    assert not saturates(layer, [torch.ones(1, 4, 5, 5)], [ActivationGrid(1.0, 0)])


def test_unmatched_calls_count_as_saturating():
    assert saturates(_layer(1.0), [torch.ones(1, 4, 5, 5)], [])
