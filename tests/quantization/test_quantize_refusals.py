"""What cannot be quantized: methods that break their grids, numbers out of range."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.grid import Grid, GridWeight
from compressbench.core.types import ACTIVATION_QUANTIZED, TRAINED, WEIGHT_QUANTIZED, Stage
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.quantize import Quantize
from compressbench.quantization.rounding.nearest import Nearest
from tests.quantization.quantized_net import context, stage, start


def test_a_model_without_such_layers_is_the_users_mistake():
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(2, 3))

        def forward(self, x):
            return x.mean((2, 3)) @ self.weight

    with pytest.raises(UserError, match="quantize found no layer it can quantize"):
        stage().run({"model": start(Plain())}, context())


def test_weights_that_are_not_finite_are_refused_by_name():
    given = start()
    given.model.grouped.weight.data[0] = math.nan
    with pytest.raises(CheckFailedError, match=r"grouped\.weight holds NaN or infinity"):
        stage().run({"model": given}, context())


@dataclass(frozen=True)
class Wrong:
    """A method that returns `integer` everywhere."""

    integer: int

    def __call__(self, model, grids: dict[str, Grid], context) -> dict[str, GridWeight]:
        weights = {name: model.get_parameter(f"{name}.weight") for name in grids}
        return {
            name: GridWeight(
                torch.ones(len(w), *[1] * (w.ndim - 1)),
                torch.full_like(w, self.integer, dtype=torch.int16),
            )
            for name, w in weights.items()
        }


def test_a_method_that_leaves_the_grid_or_revives_zeros_is_caught():
    with pytest.raises(CheckFailedError, match="stem: steps exceed 4 bits"):
        Quantize(Wrong(8), bits=4).run({"model": start()}, context())
    given = start()
    given.model.depthwise.weight.data[0, 0, 0] = 0
    with pytest.raises(CheckFailedError, match="depthwise: a weight that was zero is not zero"):
        Quantize(Wrong(7), bits=4).run({"model": given}, context())


def test_order_words_and_passes():
    weights, both = stage(), stage(MinMax())
    assert isinstance(both, Stage)
    assert weights.needs == {TRAINED}
    assert weights.adds == {WEIGHT_QUANTIZED}
    assert both.adds == {WEIGHT_QUANTIZED, ACTIVATION_QUANTIZED}
    assert both.destroys == weights.destroys == both.adds
    assert weights.passes(1000) == (0, 2 * 64)
    assert both.passes(1000) == (0, 2 * 64 + 2 * 48)
    assert both.passes(50) == (0, 2 * 50 + 2 * 48)


@pytest.mark.parametrize("value", ["abc", 4.5, 0, -3, True, None, math.nan])
@pytest.mark.parametrize("name", ["bits", "batchnorm_images", "calibration_images", "batch_size"])
def test_bad_numbers_are_refused_in_one_line_with_the_value(name, value):
    with pytest.raises(UserError, match=f"^{name} must be an integer ") as error:
        stage(**{name: value})
    assert str(error.value).endswith(f"got {value!r}")
    assert "\n" not in str(error.value)


def test_33_bits_bad_granularity_and_things_that_are_no_methods():
    with pytest.raises(UserError, match=r"bits must be an integer in \[2, 8\], got 33"):
        stage(bits=33)
    with pytest.raises(UserError, match="granularity must be tensor, channel or group, got 'row'"):
        stage(granularity="row")
    with pytest.raises(UserError, match="activation must be an observer or null, got Nearest"):
        stage(Nearest(MinMax()))
    with pytest.raises(UserError, match="weight must be a weight quantizer, got MinMax"):
        Quantize(MinMax())
