"""Weight grids against a slow loop over scalars, and what must hold for any weight."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compressbench.core.errors import UserError
from compressbench.core.grid import Grid, check_integer, choose_scale, round_to_grid
from compressbench.core.types import Context, Runtime
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.rounding.nearest import Nearest

CONTEXT = Context(None, Runtime(), 0, Path(), None)  # of which nothing is used
SHAPES = st.lists(st.integers(1, 5), min_size=2, max_size=5)
GRIDS = st.builds(Grid, st.integers(2, 8), st.sampled_from(["tensor", "channel"]))


def random_weight(shape: list[int], seed: int) -> torch.Tensor:
    """Normal weights; a third of the channels are all zero, a quarter of the rest too."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    weight *= 10 ** torch.randint(-6, 4, (shape[0], *[1] * (len(shape) - 1)), generator=generator)
    weight[torch.rand(shape, generator=generator) < 0.25] = 0.0
    weight[torch.rand(shape[0], generator=generator) < 0.3] = 0.0
    return weight


def nearest(weight: torch.Tensor, grid: Grid):
    """What Nearest does to one weight."""
    return round_to_grid(weight, choose_scale(weight, grid, MinMax())[0], grid)


def by_hand(weight: np.ndarray, bits: int, per_channel: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scales and integers, one scalar at a time, in float32."""
    levels = 2 ** (bits - 1) - 1
    channels = range(len(weight))
    largest = [np.float32(max(abs(v) for v in weight[c].flat)) for c in channels]
    if not per_channel:
        largest = [max(largest)] * len(weight)
    scales = [m / np.float32(levels) if m > 0 else np.float32(1) for m in largest]
    integers = np.zeros(weight.shape, np.int64)
    for place in itertools.product(*map(range, weight.shape)):
        step = weight[place] / scales[place[0]]
        floor = int(np.floor(step))
        rest = step - floor
        up = rest > 0.5 or (rest == 0.5 and floor % 2 == 1)
        integers[place] = max(-levels, min(levels, floor + up))
    return np.array(scales, np.float32), integers


@given(SHAPES, GRIDS, st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_agrees_with_a_loop_over_scalars(shape, grid, seed):
    weight = random_weight(shape, seed)
    result = nearest(weight, grid)
    scales, integers = by_hand(weight.numpy(), grid.bits, grid.granularity == "channel")
    lead = shape[0] if grid.granularity == "channel" else 1
    assert result.scale.shape == (lead, *[1] * (len(shape) - 1))
    assert result.scale.dtype == torch.float32
    assert result.steps.dtype == torch.int16
    np.testing.assert_array_equal(result.scale.flatten().numpy(), scales[:lead])
    np.testing.assert_array_equal(result.steps.numpy(), integers)


@given(SHAPES, GRIDS, st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_zeros_stay_the_error_is_half_a_step_and_the_largest_weight_is_met(shape, grid, seed):
    weight = random_weight(shape, seed)
    result = nearest(weight, grid)
    assert not result.weight[weight == 0].any()
    step = result.scale.double()
    assert ((result.weight - weight).abs().double() <= 0.5001 * step).all()
    assert torch.equal(result.weight, result.scale * result.steps.float())
    if weight.any():
        assert result.steps.abs().max() == grid.high
    assert len(result.steps.unique()) <= 2**grid.bits - 1


def test_two_bits_are_ternary_and_ties_go_to_even():
    grid = Grid(2, "tensor")
    weight = torch.tensor([[1.0, 0.5, -0.5, 0.51, -1.0, 0.0]])
    assert nearest(weight, grid).steps.tolist() == [[1, 0, 0, 1, -1, 0]]


def test_a_zero_channel_has_scale_one_and_so_has_a_subnormal_one():
    weight = torch.tensor([[0.0, 0.0], [1e-44, 0.0], [2.0, 1.0]])
    result = nearest(weight, Grid(8, "channel"))
    assert result.scale[:2].flatten().tolist() == [1.0, 1.0]
    assert not result.weight[:2].any()


def test_nearest_quantizes_only_what_it_is_given_and_does_not_change_the_model():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 5))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    result = Nearest(MinMax())(model, {"1": Grid(4, "channel")}, CONTEXT)
    assert set(result) == {"1"}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("bits", ["abc", 4.5, 0, 1, 9, 33, True, None, -8])
def test_bad_bits_are_refused_with_their_value(bits):
    with pytest.raises(UserError, match=r"bits must be an integer in \[2, 8\], got ") as error:
        Grid(bits, "channel")
    assert repr(bits) in str(error.value)


def test_bad_granularity_and_unbounded_integers():
    with pytest.raises(UserError, match="granularity must be tensor, channel or group, got 'row'"):
        Grid(8, "row")
    check_integer("images", 1, 1)
    with pytest.raises(UserError, match="images must be an integer of at least 1, got 0"):
        check_integer("images", 0, 1)
