"""Ranges of activations against numpy, and their independence of batches and ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressbench.core.errors import UserError
from compressbench.quantization.observers.entropy import Entropy
from compressbench.quantization.observers.histogram import SIDE
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.observers.moving_average import MovingAverage
from compressbench.quantization.observers.mse import Mse
from compressbench.quantization.observers.percentile import Percentile
from tests.two_ranks import on_two_ranks

UNORDERED = [MinMax(), Percentile(99.0), Percentile(100), Mse(), Entropy()]
OBSERVERS = [*UNORDERED, MovingAverage(0.3)]


def observed(observer, batches) -> tuple[float, float]:
    statistic = observer.start()
    for batch in batches:
        statistic = observer.update(statistic, batch)
    return observer.range(statistic, 8, False)


def activations(seed: int, relu: bool) -> list[torch.Tensor]:
    """Batches whose magnitudes differ by far, so that the histogram has to grow."""
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** (4 * torch.rand(6, generator=generator) - 2)
    batches = [torch.randn(5, 7, 11, generator=generator) * scale for scale in scales]
    return [b.relu() for b in batches] if relu else batches


def bin_width(values: np.ndarray) -> float:
    return float(2.0 ** math.frexp(np.abs(values).max())[1] / SIDE)


@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([50.0, 87.5, 99.609375, 100]))
@settings(max_examples=80, deadline=None)
def test_percentile_is_numpys_within_a_bin(seed, relu, percentile):
    batches = activations(seed, relu)
    values = torch.cat([b.flatten() for b in batches]).double().numpy()
    low, high = observed(Percentile(percentile), batches)
    top = percentile if relu else 50 + percentile / 2
    width = bin_width(values)
    assert high == pytest.approx(np.percentile(values, top, method="inverted_cdf"), abs=width)
    # from the other end, so that ties are counted as from the top
    bottom = 0 if relu else -np.percentile(-values, top, method="inverted_cdf")
    assert low == pytest.approx(bottom, abs=width)
    inside = ((values >= low) & (values <= high)).mean()
    assert inside >= percentile / 100 - 1e-12


@given(
    st.integers(0, 10_000), st.integers(1, 40), st.booleans(), st.sampled_from([50.0, 80.0, 100])
)
@settings(max_examples=30, deadline=None)
def test_percentile_of_weights_is_numpys_row_by_row(seed, width, relu, percentile):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(5, width, generator=generator)
    rows = rows.relu() if relu else rows
    low, high = Percentile(percentile).row_ranges(rows, 4, True)
    for number, row in enumerate(rows.double().numpy()):
        top = 50 + percentile / 2 if row.min() < 0 else percentile
        assert high[number] == np.percentile(row, top, method="inverted_cdf")
        bottom = -np.percentile(-row, top, method="inverted_cdf") if row.min() < 0 else row.min()
        assert low[number] == bottom


@given(st.integers(0, 10_000), st.booleans())
@settings(max_examples=30, deadline=None)
def test_minmax_and_the_hundredth_percentile_are_the_extremes(seed, relu):
    batches = activations(seed, relu)
    values = torch.cat([b.flatten() for b in batches])
    extremes = (values.min().item(), values.max().item())
    assert observed(MinMax(), batches) == extremes
    assert observed(Percentile(100), batches) == extremes


@pytest.mark.parametrize("observer", UNORDERED)
def test_neither_order_nor_batching_matters(observer):
    batches = activations(3, relu=False)
    whole = torch.cat([b.flatten() for b in batches])
    expected = observed(observer, batches)
    assert observed(observer, batches[::-1]) == expected
    assert observed(observer, [whole]) == expected


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_value_that_is_not_finite_makes_the_range_so(observer, bad, position):
    batches = [torch.randn(10) for _ in range(3)]
    batches[position][4] = bad
    assert not all(math.isfinite(end) for end in observed(observer, batches))


@pytest.mark.parametrize("observer", OBSERVERS)
def test_no_data_is_no_finite_range_and_zeros_are_zero(observer):
    low, high = observed(observer, [])
    assert not math.isfinite(low) or not math.isfinite(high)
    assert observed(observer, [torch.zeros(9), torch.zeros(4)]) == (0.0, 0.0)


def test_an_outlier_is_cut_and_small_values_after_zeros_are_resolved():
    values = torch.rand(100_000)
    values[0] = 1000.0
    low, high = observed(Percentile(99.9), [torch.zeros(8), values])
    assert low == 0.0
    assert high == pytest.approx(1.0, abs=1024 / SIDE + 0.01)
    tiny = torch.rand(10_000) * 1e-6
    assert observed(Percentile(50), [torch.zeros(8), tiny])[1] == pytest.approx(5e-7, rel=0.05)


@pytest.mark.parametrize("value", [0, -1, 100.1, math.nan, "99", True, None])
def test_bad_percentile_is_refused(value):
    with pytest.raises(UserError, match=r"percentile must be a number in \(0, 100\], got"):
        Percentile(value)


def one_rank(rank: int):
    batches = activations(5, relu=False)[rank::2]
    return [observed(observer, batches) for observer in OBSERVERS]


def test_two_ranks_with_half_the_batches_each_agree_with_one(tmp_path):
    """The moving average, which depends on the order, is the mean of the ranks' own."""
    batches = activations(5, relu=False)
    results = on_two_ranks(one_rank, tmp_path)
    assert results[0] == results[1]
    assert results[0][:-1] == [observed(observer, batches) for observer in UNORDERED]
    halves = [observed(OBSERVERS[-1], batches[rank::2]) for rank in (0, 1)]
    assert results[0][-1] == pytest.approx(np.mean(halves, axis=0))
