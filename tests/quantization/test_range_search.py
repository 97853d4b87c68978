"""Ranges by squared error, by divergence and by moving averages, against slow numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressbench.core.activation_quantizers import SiteQuantizer
from compressbench.core.errors import UserError
from compressbench.core.grid import Grid, choose_scale, round_to_grid
from compressbench.quantization.observers.entropy import Entropy, threshold
from compressbench.quantization.observers.minmax import MinMax
from compressbench.quantization.observers.moving_average import MovingAverage
from compressbench.quantization.observers.mse import Mse

SEEDS = st.integers(0, 10_000)


def sample(seed: int, shape: tuple[int, ...], shift: float = 0.0) -> torch.Tensor:
    """Heavy-tailed values, so that clipping pays."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator)
    return values * values.abs() + shift


def coded(values: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """`values` on the grid of 2**bits codes over [low, high], which holds zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (2**bits - 1)
    zero_point = round(-low / scale)
    codes = np.clip(np.round(values / scale) + zero_point, 0, 2**bits - 1)
    return scale * (codes - zero_point)


def observed(observer, values, bits: int, symmetric: bool = False) -> tuple[float, float]:
    return observer.range(observer.update(observer.start(), values), bits, symmetric)


@given(SEEDS, st.integers(2, 8))
@settings(max_examples=20, deadline=None)
def test_mse_of_symmetric_weights_is_the_best_of_a_dense_search(seed, bits):
    rows = sample(seed, (8, 400))
    low, high = Mse().row_ranges(rows, bits, True)
    assert torch.equal(low, -high)
    largest, total, best = 2 ** (bits - 1) - 1, 0.0, 0.0
    for row, found in zip(rows.double().numpy(), high.tolist(), strict=True):
        candidates = np.append(np.linspace(0.005, 1, 1500) * np.abs(row).max(), found)
        steps = np.clip(np.round(row / candidates[:, None] * largest), -largest, largest)
        errors = ((steps * candidates[:, None] / largest - row) ** 2).sum(1)
        total, best = total + errors[-1], best + errors.min()
    assert total <= 1.01 * best  # of one short row the error jumps with every range tried


@given(SEEDS, st.integers(2, 5), st.sampled_from([0.0, 1.5, -0.4]))
@settings(max_examples=8, deadline=None)
def test_mse_of_asymmetric_weights_comes_close_to_a_search_over_both_ends(seed, bits, shift):
    rows = sample(seed, (2, 60), shift)
    low, high = Mse().row_ranges(rows, bits, False)
    for row, ends in zip(rows.double().numpy(), zip(low.tolist(), high.tolist(), strict=True),
                         strict=True):  # fmt: skip
        best = min(
            ((coded(row, a * row.min(), b * row.max(), bits) - row) ** 2).sum()
            for a in np.linspace(0.04, 1, 25)
            for b in np.linspace(0.04, 1, 25)
        )
        assert ((coded(row, *ends, bits) - row) ** 2).sum() <= 1.06 * best


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mse_is_never_above_min_max(bits, granularity, symmetric, seed):
    weight = sample(seed, (6, 5, 3), 0.5 * seed)
    grid = Grid(bits, granularity, symmetric=symmetric)

    def errors(observer) -> torch.Tensor:
        scale, zero_point = choose_scale(weight, grid, observer)
        error = round_to_grid(weight, scale, grid, zero_point).weight - weight
        axes = (0, 1, 2) if granularity == "tensor" else (1, 2)
        return error.double().square().sum(axes)

    assert (errors(Mse()) <= errors(MinMax()) * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", range(4, 9))
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_mse_of_activations_is_the_best_of_a_dense_search(bits, relu, seed):
    values = sample(seed, (3000,), 0.3)
    values = values.relu() if relu else values
    exact = values.double().numpy()

    def error(low: float, high: float) -> float:
        site = SiteQuantizer(bits)
        site.set_range_(low, high)
        return float((site(values) - values).double().square().sum())

    found = error(*observed(Mse(), values, bits))
    assert found <= error(exact.min(), exact.max()) * 1.01
    ratios = np.linspace(0.05, 1, 40)
    ends = [(a * exact.min(), b * exact.max()) for b in ratios for a in ([1] if relu else ratios)]
    best = min(((coded(exact, *pair, bits) - exact) ** 2).sum() for pair in ends)
    assert found <= 1.03 * best


def test_a_symmetric_range_of_activations_is_symmetric():
    low, high = observed(Mse(), sample(0, (500,), 1.0), 8, symmetric=True)
    assert low == -high


def divergence(counts: np.ndarray, kept: int, levels: int) -> float:
    """KL(P || Q) of one threshold, bin by bin."""
    p = counts[:kept].astype(float)
    p[-1] += counts[kept:].sum()
    q = np.zeros(kept)
    for level in range(levels):
        bins = [j for j in range(kept) if j * levels // kept == level]
        filled = [j for j in bins if p[j] > 0]
        for j in filled:
            q[j] = max(counts[bins].sum(), 1e-4) / len(filled)
    p, q = p / p.sum(), q / counts[:kept].sum()
    return sum(p[j] * math.log(p[j] / q[j]) for j in range(kept) if p[j] > 0)


@given(SEEDS, st.sampled_from([2, 8, 16]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_threshold_has_the_least_divergence_of_all(seed, levels, sparse):
    generator = np.random.default_rng(seed)
    counts = np.histogram(np.abs(generator.standard_t(3, 4000)), 40)[0]
    counts[generator.random(40) < (0.5 if sparse else 0.0)] = 0
    counts[0] += 1
    found = threshold(torch.from_numpy(counts), levels)
    assert levels <= found <= 40
    fits = [kept for kept in range(levels, 41) if counts[:kept].sum() >= counts.sum() / 2]
    losses = [divergence(counts, kept, levels) for kept in fits]
    assert divergence(counts, found, levels) <= min(losses) + 1e-9


def test_half_of_the_values_are_kept_where_all_are_far_from_zero():
    counts = torch.zeros(1000, dtype=torch.int64)
    counts[900:] = 10
    assert threshold(counts, 16) >= 950


def test_fewer_bins_than_levels_are_all_kept():
    assert threshold(torch.tensor([3, 1, 2]), 8) == 3


@pytest.mark.parametrize("bits", [4, 8])
def test_entropy_cuts_a_tail_but_not_the_bulk_and_zeros_do_not_matter(bits):
    values = torch.cat((torch.rand(200_000), torch.tensor([5.0])))
    low, high = observed(Entropy(), values, bits)
    assert low == values.min()
    assert 0.9 < high < 2  # 256 levels span at least 256 bins
    with_zeros = torch.cat((values, torch.zeros(500_000)))
    assert observed(Entropy(), with_zeros, bits)[1] == high
    assert observed(Entropy(), -values, bits)[0] == -high
    assert observed(Entropy(), torch.full((9,), 3.0), bits) == (3.0, 3.0)


def test_entropy_of_signed_values_cuts_both_ends_at_the_same_distance():
    values = torch.cat((torch.rand(200_000) * 2 - 1, torch.tensor([5.0, -0.5, -6.0])))
    low, high = observed(Entropy(), values, 8)
    assert low == -high
    assert high < 2
    lopsided = torch.cat((torch.rand(200_000) - 0.1, torch.tensor([5.0])))
    assert observed(Entropy(), lopsided, 8)[0] == lopsided.min()


@pytest.mark.parametrize("bits", [3, 8])
def test_entropy_of_weights_is_that_of_each_row(bits):
    rows = sample(4, (3, 400))
    low, high = Entropy().row_ranges(rows, bits, True)
    expected = [observed(Entropy(), row, bits) for row in rows]
    assert list(zip(low.tolist(), high.tolist(), strict=True)) == expected


@given(SEEDS, st.floats(0.05, 1), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_a_moving_average_is_numpys(seed, momentum, count):
    batches = [sample(seed + n, (4, 3)) for n in range(count)]
    observer = MovingAverage(momentum)
    statistic = observer.start()
    ends = None
    for batch in batches:
        statistic = observer.update(statistic, batch)
        new = np.array([batch.min(), batch.max()], np.float64)
        ends = new if ends is None else (1 - momentum) * ends + momentum * new
    assert observer.range(statistic, 8, False) == pytest.approx(tuple(ends), rel=1e-5)


def test_a_moving_average_of_weights_is_min_max():
    rows = sample(1, (4, 9))
    for ours, minmax in zip(
        MovingAverage().row_ranges(rows, 8, True), MinMax().row_ranges(rows, 8, True), strict=True
    ):
        assert torch.equal(ours, minmax)


@pytest.mark.parametrize("value", [0, -0.1, 1.5, math.nan, "0.1", True, None])
def test_bad_momentum_is_refused(value):
    with pytest.raises(UserError, match=r"momentum must be a number in \(0, 1\], got"):
        MovingAverage(value)


def test_bad_candidates_are_refused():
    with pytest.raises(UserError, match="candidates must be an integer of at least 2, got 1"):
        Mse(1)
