"""Distributes a sparsity over layers: ERK, LAMP, and rounding to whole numbers of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def erk(shapes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
    """Density of each layer, proportional to the sum of its axes over their product.

    A layer [out, in, kernel...] keeps the share min(1, eps (out + in + kernel...) / (out in
    kernel...)) of its weights, with eps such that all layers together keep 1 - `sparsity`
    (Erdős-Rényi-Kernel, Evci et al. 2020, arXiv:1911.11134, section 3.1).
    """
    sizes = {name: _product(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    keep = (1.0 - sparsity) * sum(sizes.values())
    dense = set[str]()
    while True:
        rest = [name for name in shapes if name not in dense]
        weight = sum(raw[name] * sizes[name] for name in rest)
        eps = (keep - sum(sizes[name] for name in dense)) / weight if rest else 0.0
        over = {name for name in rest if eps * raw[name] > 1.0}
        if not over:
            return {name: 1.0 if name in dense else eps * raw[name] for name in shapes}
        dense |= over


def lamp(
    squares: Mapping[str, Tensor], zeros: Mapping[str, Tensor], share: float
) -> dict[str, int]:
    """Number of units that each layer keeps when the `share` with the lowest LAMP scores is pruned.

    A unit is a weight or a block. The score of a unit with square s is s divided by the sum of
    all squares of its layer that are not smaller (Lee et al. 2021, arXiv:2010.07611, equation 3).
    The largest unit of a layer scores 1 and is kept; those in `zeros` are pruned first.
    """
    scores = {name: _lamp_scores(square.flatten()) for name, square in squares.items()}
    flat = torch.cat(
        [score.masked_fill(zeros[name].flatten(), -1.0) for name, score in scores.items()]
    )
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[torch.argsort(flat, stable=True)[: round(share * len(flat))]] = False
    parts = torch.split(kept, [len(score) for score in scores.values()])
    return {name: max(1, int(part.sum())) for name, part in zip(scores, parts, strict=True)}


def _lamp_scores(squares: Tensor) -> Tensor:
    order = torch.argsort(squares.double(), stable=True)
    ascending = squares.double()[order]
    larger = ascending.flip(0).cumsum(0).flip(0)
    scores = torch.zeros_like(ascending)
    scores[order] = ascending / larger.clamp_min(torch.finfo(torch.float64).tiny)
    return scores


def whole(densities: Mapping[str, float], sizes: Mapping[str, int], share: float) -> dict[str, int]:
    """Round densities to whole numbers of units per layer that sum to n - round(share n).

    Every layer keeps at least one unit, even if the sum is larger then. The largest remainders
    are rounded up; of equal ones, those of earlier layers.
    """
    total = sum(sizes.values()) - round(share * sum(sizes.values()))
    exact = {name: densities[name] * sizes[name] for name in sizes}
    kept = {name: max(1, int(value)) for name, value in exact.items()}
    by_remainder = sorted(sizes, key=lambda name: -(exact[name] - int(exact[name])))
    for name in by_remainder:
        if sum(kept.values()) < total and kept[name] < sizes[name]:
            kept[name] += 1
    return kept


def _product(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
