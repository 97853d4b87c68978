"""Pareto dominance, hypervolume and knee for any number of objectives, as pure functions.

`losses` are finite float arrays (points, objectives) in which lower is better: negate objectives to
maximize. Equal points do not dominate each other, so all of them are on the front; `distinct` keeps
the first of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Losses: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]

FLOOR_BELOW_BASELINE = 0.20
_SAME = 1e-12  # smaller differences of normalized losses are rounding errors


def dominates(first: Losses, second: Losses) -> bool:
    """Whether `first` is no worse than `second` in any objective and better in at least one."""
    return bool((first <= second).all() and (first < second).any())


def front_mask(losses: Losses) -> Mask:
    """Mark the points that no other point dominates, bool (points,); equal points are all marked.

    Raises ValueError if `losses` is not a finite array with two axes.
    """
    _check(losses)
    if not len(losses):
        return np.zeros(0, dtype=bool)
    points, groups = np.unique(losses, axis=0, return_inverse=True)
    mask = _mask_of_two(points) if losses.shape[1] == 2 else _mask_of_many(points)
    return mask[groups.reshape(-1)]


def _mask_of_two(points: Losses) -> Mask:
    """The mask for two objectives. `points` are distinct and sorted: only earlier ones dominate."""
    best_before = np.minimum.accumulate(points[:, 1])
    mask = np.ones(len(points), dtype=bool)
    mask[1:] = points[1:, 1] < best_before[:-1]
    return mask


def _mask_of_many(points: Losses) -> Mask:
    """The mask for any number of objectives. `points` are distinct and sorted.

    The first remaining point is on the front; the points that it dominates are dropped.
    """
    mask = np.zeros(len(points), dtype=bool)
    left = np.arange(len(points))
    while len(left):
        mask[left[0]] = True
        rest = left[1:]
        left = rest[(points[rest] < points[left[0]]).any(axis=1)]
    return mask


def distinct(losses: Losses) -> Mask:
    """Mark the first of each set of equal points, bool (points,)."""
    mask = np.zeros(len(losses), dtype=bool)
    if len(losses):
        mask[np.unique(losses, axis=0, return_index=True)[1]] = True
    return mask


def hypervolume(losses: Losses, reference: Losses) -> float:
    """The exact volume dominated by `losses` (points, objectives) up to `reference` (objectives,).

    A point that is not better than the reference in every objective adds nothing. Two objectives
    need only a sort; more use the recursion over exclusive volumes of While, Bradstreet and Barone
    2012, "A fast way of calculating exact hypervolumes", with a cost exponential in the number of
    objectives. Raises ValueError for arrays of the wrong shape or with values that are not finite.
    """
    _check(losses)
    if reference.shape != losses.shape[1:] or not np.isfinite(reference).all():
        raise ValueError(f"reference must be {losses.shape[1]} finite numbers, got {reference}")
    inside = losses[(losses < reference).all(axis=1)]
    return _volume(inside, reference)


def _volume(points: Losses, reference: Losses) -> float:
    if not len(points):
        return 0.0
    front = np.unique(points[front_mask(points)], axis=0)  # sorted by the first objective
    if front.shape[1] == 1:
        return float(reference[0] - front[0, 0])
    if front.shape[1] == 2:
        return _area(front, reference)
    boxes = (reference - front).prod(axis=1)
    worse = (np.maximum(front[i + 1 :], point) for i, point in enumerate(front))
    shared = (_volume(limited, reference) for limited in worse)
    return float(sum(box - common for box, common in zip(boxes, shared, strict=True)))


def _area(front: Losses, reference: Losses) -> float:
    """The area of a staircase: first objective ascending, second descending."""
    above = np.concatenate([reference[1:], front[:-1, 1]])
    return float((reference[0] - front[:, 0]) @ (above - front[:, 1]))


def front_hypervolume(
    metric: Sequence[float],
    size_bytes: Sequence[float],
    baseline_bytes: float,
    floor: float,
) -> float:
    """`front/hypervolume`, in percentage points times halvings; higher is better.

    The area under 100 * max(metric - floor, 0) over x = log2(baseline_bytes / size_bytes) >= 0,
    where the metric at x is the best of all files with at least x halvings.

    Args:
        metric: Metric of each file, higher is better; 1 is 100 points.
        size_bytes: Size of each file.
        baseline_bytes: Size of the float model's .onnx file, even if `size_bytes` are downloads.
        floor: Metric below which a file adds nothing.

    Raises:
        ValueError: A size is not positive.
    """
    if baseline_bytes <= 0 or min(size_bytes, default=1) <= 0:
        raise ValueError("bytes must be positive")
    halvings = np.log2(baseline_bytes / np.asarray(size_bytes, dtype=np.float64))
    points = 100 * (np.asarray(metric, dtype=np.float64) - floor)
    return hypervolume(-np.stack([halvings, points], axis=1), np.zeros(2))


def knee(losses: Losses) -> int:
    """Index of the knee of a front: the point with the smallest sum of losses scaled to [0, 1].

    With two objectives it is the point farthest below the line through the two ends of the front
    (Das 1999, "On characterizing the knee of the Pareto curve based on normal-boundary
    intersection"). Ties go to the first point; an objective with equal values is ignored. `losses`
    is a front with at least one point.
    """
    _check(losses)
    low, high = losses.min(axis=0), losses.max(axis=0)
    spread = np.where(high > low, high - low, 1.0)
    sums = ((losses - low) / spread).sum(axis=1)
    return int(np.flatnonzero(sums <= sums.min() + _SAME)[0])


def binomial_error(share: float, rows: int) -> float:
    """Standard error of a share of correct answers among `rows`.

    Two correct and two wrong answers are added (Agresti, Coull 1998), so that the error is not zero
    if all of a few rows are correct. Raises ValueError for a share outside [0, 1] or no rows.
    """
    if rows <= 0 or not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1] and rows positive, got {share} of {rows}")
    adjusted = (share * rows + 2) / (rows + 4)
    return math.sqrt(adjusted * (1 - adjusted) / (rows + 4))


def spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def dominated_within_noise(losses: Losses, errors: Losses) -> Mask:
    """Mark the points that another point dominates if differences within noise count as zero.

    The other point must be better by more than the noise in some objective and not worse by more
    than the noise in any. The noise of a difference is one standard error, the root of the sum of
    the squared `errors` of the two points. This overestimates it for figures measured on the same
    rows, so a mark means "not shown to be better".

    `errors` (points, objectives) are standard errors, 0 for exact figures such as bytes.
    """
    _check(losses)
    if losses.shape != errors.shape:
        raise ValueError(f"errors must have the shape {losses.shape}, got {errors.shape}")
    marked = np.zeros(len(losses), dtype=bool)
    for i, point in enumerate(losses):
        noise = np.hypot(errors, errors[i])
        gain = point - losses  # of the other points over this point
        marked[i] = ((gain >= -noise).all(axis=1) & (gain > noise).any(axis=1)).any()
    return marked


def _check(losses: Losses) -> None:
    if losses.ndim != 2 or losses.shape[1] < 1:
        raise ValueError(f"losses must be (points, objectives), got shape {losses.shape}")
    if not np.isfinite(losses).all():
        raise ValueError("losses must be finite")
