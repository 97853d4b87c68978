from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest

from compressbench.results.pareto import (
    binomial_error,
    distinct,
    dominated_within_noise,
    dominates,
    front_hypervolume,
    front_mask,
    hypervolume,
    knee,
    spread,
)


def brute_mask(losses):
    return np.array(
        [not any(dominates(b, a) for b in losses) for a in losses],
        dtype=bool,
    )


def brute_volume(losses, reference):
    """Cells between all coordinates, counted where some point dominates the cell."""
    grids = [
        sorted({*losses[:, k][losses[:, k] < reference[k]], reference[k]})
        for k in range(losses.shape[1])
    ]
    total = 0.0
    for cell in itertools.product(*(range(len(g) - 1) for g in grids)):
        low = np.array([g[i] for g, i in zip(grids, cell, strict=True)])
        if (losses <= low).all(axis=1).any():
            total += math.prod(g[i + 1] - g[i] for g, i in zip(grids, cell, strict=True))
    return total


def random_losses(seed, objectives, points=None, grid=None):
    """Random points; on a coarse grid there are ties and duplicates."""
    random = np.random.default_rng(seed)
    points = int(random.integers(1, 40)) if points is None else points
    if grid:
        return random.integers(0, grid, (points, objectives)).astype(float)
    return random.normal(size=(points, objectives))


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [None, 4])
def test_the_front_is_the_one_of_brute_force_and_of_optuna(objectives, grid):
    from optuna.study._multi_objective import _is_pareto_front

    for seed in range(30):
        losses = random_losses(seed, objectives, grid=grid)
        mask = front_mask(losses)
        np.testing.assert_array_equal(mask, brute_mask(losses))
        reference = _is_pareto_front(losses, assume_unique_lexsorted=False)
        np.testing.assert_array_equal(mask, reference)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", [None, 4])
def test_the_hypervolume_is_the_one_of_brute_force_and_of_optuna(objectives, grid):
    from optuna._hypervolume import compute_hypervolume

    for seed in range(8):
        losses = random_losses(seed, objectives, points=7, grid=grid)
        reference = np.full(objectives, 2.5 if grid else 0.5)
        value = hypervolume(losses, reference)
        assert value == pytest.approx(brute_volume(losses, reference), abs=1e-12)
        inside = losses[(losses < reference).all(axis=1)]
        other = compute_hypervolume(inside, reference) if len(inside) else 0.0
        assert value == pytest.approx(other, abs=1e-12)


def test_large_random_sets_agree_with_optuna():
    from optuna._hypervolume import compute_hypervolume

    for objectives, points in ((2, 3000), (3, 300), (5, 40)):
        losses = np.random.default_rng(objectives).random((points, objectives))
        reference = np.ones(objectives)
        assert hypervolume(losses, reference) == pytest.approx(
            compute_hypervolume(losses, reference), rel=1e-12
        )


def test_ties_duplicates_and_single_points():
    losses = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0], [0.5, 2.0], [2.0, 1.0], [2.0, 1.0]])
    assert front_mask(losses).tolist() == [False, False, False, True, True, True]
    assert distinct(losses).tolist() == [True, False, True, True, True, False]
    assert front_mask(np.array([[3.0, 3.0]])).tolist() == [True]
    assert front_mask(np.zeros((0, 2))).tolist() == []
    twice = np.array([[1.0, 1.0], [1.0, 1.0]])
    assert hypervolume(twice, np.array([2.0, 3.0])) == 2.0
    assert hypervolume(np.zeros((0, 3)), np.ones(3)) == 0.0
    on_the_border = np.array([[2.0, 0.0], [5.0, -1.0]])
    assert hypervolume(on_the_border, np.array([2.0, 3.0])) == 0.0


@pytest.mark.parametrize("bad", [np.array([[np.nan, 1]]), np.array([[np.inf, 1]]), np.zeros(3)])
def test_what_is_no_number_is_refused(bad):
    with pytest.raises(ValueError, match="losses must be"):
        front_mask(bad)


def test_a_reference_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="reference must be 2 finite numbers"):
        hypervolume(np.zeros((1, 2)), np.zeros(3))


def test_ten_thousand_points_take_a_moment():
    random = np.random.default_rng(0)
    angle = random.random(10_000) * np.pi / 2
    for losses in (random.random((10_000, 2)), -np.stack([np.cos(angle), np.sin(angle)], axis=1)):
        started = time.perf_counter()
        assert front_mask(losses).any()
        assert hypervolume(losses, np.ones(2)) > 0
        assert time.perf_counter() - started < 0.5  # measured: 0.02


def test_the_front_hypervolume_is_points_times_halvings():
    # 1000 -> 250 bytes: two halvings at 20 points above the floor
    assert front_hypervolume([0.9], [250], 1000, 0.7) == pytest.approx(40.0)
    # and one more halving at 10 points
    assert front_hypervolume([0.9, 0.8], [250, 125], 1000, 0.7) == pytest.approx(50.0)
    # below the floor, or no smaller than the baseline: nothing
    assert front_hypervolume([0.6, 0.95], [125, 1000], 1000, 0.7) == 0.0
    assert front_hypervolume([], [], 1000, 0.7) == 0.0
    with pytest.raises(ValueError, match="bytes must be positive"):
        front_hypervolume([0.9], [0], 1000, 0.7)


def test_the_front_hypervolume_is_the_area_under_the_curve():
    random = np.random.default_rng(3)
    metric, size = random.uniform(0.5, 1.0, 30), random.uniform(50, 2000, 30)
    edges = np.linspace(0, np.log2(1000 / size.min()), 200_001)
    middles = (edges[1:] + edges[:-1]) / 2
    halvings = np.log2(1000 / size)
    height = np.zeros_like(middles)
    for x, y in zip(halvings, metric, strict=True):
        height = np.maximum(height, np.where(middles <= x, 100 * (y - 0.7), 0.0))
    slow = float((height * np.diff(edges)).sum())
    assert front_hypervolume(metric, size, 1000, 0.7) == pytest.approx(slow, rel=1e-3)


def test_the_knee_is_the_farthest_from_the_line_through_the_ends():
    random = np.random.default_rng(5)
    for _ in range(20):
        points = random.random((30, 2)) * [3.0, 700.0]
        front = points[front_mask(points)]
        if len(front) < 3:
            continue
        scaled = (front - front.min(axis=0)) / (front.max(axis=0) - front.min(axis=0))
        start, end = scaled[scaled[:, 0].argmin()], scaled[scaled[:, 1].argmin()]
        along = (end - start) / np.linalg.norm(end - start)
        away = scaled - start
        below = -(along[0] * away[:, 1] - along[1] * away[:, 0])
        assert knee(front) == int(np.flatnonzero(below >= below.max() - 1e-9)[0])


def test_the_knee_of_one_two_and_equal_points():
    assert knee(np.array([[1.0, 5.0]])) == 0
    assert knee(np.array([[0.0, 5.0], [1.0, 4.0]])) == 0
    assert knee(np.array([[0.0, 5.0, 7.0], [1.0, 1.0, 7.0], [9.0, 0.0, 7.0]])) == 1


def test_errors_of_shares_and_repeats():
    assert binomial_error(0.5, 10_000) == pytest.approx(0.005, rel=1e-3)
    assert 0 < binomial_error(1.0, 360) < 0.006
    draws = np.random.default_rng(0).binomial(5000, 0.9, 20_000) / 5000
    assert binomial_error(0.9, 5000) == pytest.approx(draws.std(), rel=0.03)
    assert spread([0.9, 0.92]) == pytest.approx(0.01414, rel=1e-3)
    assert spread([0.9]) == 0.0
    with pytest.raises(ValueError, match="share must be"):
        binomial_error(1.1, 10)


def test_a_gain_within_the_noise_does_not_pay_for_bytes():
    # accuracy 0.900, 0.899, 0.80 at 100, 50, 20 bytes
    losses = np.array([[-0.900, 100.0], [-0.899, 50.0], [-0.80, 20.0]])
    exact = np.zeros_like(losses)
    assert not dominated_within_noise(losses, exact).any()
    errors = exact + np.array([0.003, 0.0])
    assert dominated_within_noise(losses, errors).tolist() == [True, False, False]
    assert not dominated_within_noise(losses[:1], errors[:1]).any()
    assert not dominated_within_noise(losses[[0, 0]], errors[[0, 0]]).any()


def test_without_noise_it_is_dominance():
    losses = random_losses(1, 3, points=60, grid=4)
    marked = dominated_within_noise(losses, np.zeros_like(losses))
    np.testing.assert_array_equal(marked, ~front_mask(losses))
