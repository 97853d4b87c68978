"""Dominance between trials, as far as the search itself needs it."""

from __future__ import annotations

from collections.abc import Sequence

from compressbench.trials import Objective


def dominates(a: Sequence[float], b: Sequence[float], objectives: Sequence[Objective]) -> bool:
    """Whether `a` is nowhere worse than `b`, and better in at least one objective."""
    signs = [-1.0 if o.direction == "maximize" else 1.0 for o in objectives]
    pairs = [(s * x, s * y) for s, x, y in zip(signs, a, b, strict=True)]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def front(points: Sequence[Sequence[float]], objectives: Sequence[Objective]) -> list[int]:
    """Positions of the points that no other one dominates; equal points all stay."""
    return [i for i, p in enumerate(points) if not any(dominates(q, p, objectives) for q in points)]
