"""Computes boolean masks from importance scores."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def by_share(
    scores: Mapping[str, Tensor], zeros: Mapping[str, Tensor], share: float, together: bool
) -> dict[str, Tensor]:
    """Masks (True is kept) that prune round(share * n) of n weights, the least important ones.

    n counts all layers (`together`) or each layer separately. All weights in `zeros` are pruned
    first and count towards the share. Of equally important weights those of lower index are
    pruned first (layers in order, weights in row-major order). The most important weight of a
    layer is kept, unless it is zero.
    """
    if together:
        return _drop_least(scores, zeros, share)
    parts = [_drop_least({n: scores[n]}, {n: zeros[n]}, share) for n in scores]
    return {name: mask for part in parts for name, mask in part.items()}


def by_count(
    scores: Mapping[str, Tensor], zeros: Mapping[str, Tensor], counts: Mapping[str, int]
) -> dict[str, Tensor]:
    """Masks that keep the `counts` most important weights of each layer, but none in `zeros`."""
    parts: dict[str, Tensor] = {}
    for name, score in scores.items():
        share = 1.0 - counts[name] / max(1, score.numel())
        parts |= _drop_least({name: score}, {name: zeros[name]}, share)
    return parts


def by_threshold(
    scores: Mapping[str, Tensor], zeros: Mapping[str, Tensor], threshold: float
) -> dict[str, Tensor]:
    """Masks that prune `zeros` and every weight of importance below `threshold`.

    The most important weight of a layer is kept, unless it is zero.
    """
    return {
        name: (ranked == math.inf) | ((ranked >= threshold) & ~zeros[name])
        for name, ranked in _ranked(scores, zeros).items()
    }


def _ranked(scores: Mapping[str, Tensor], zeros: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Scores with -inf for weights always pruned, and +inf for those always kept."""
    ranked = {}
    for name, score in scores.items():
        values = score.masked_fill(zeros[name], -math.inf).flatten()
        largest = int(values.argmax())
        if values[largest] > -math.inf:
            values[largest] = math.inf
        ranked[name] = values.view_as(score)
    return ranked


def _drop_least(
    scores: Mapping[str, Tensor], zeros: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    ranked = _ranked(scores, zeros)
    flat = torch.cat([values.flatten() for values in ranked.values()])
    lowest = int((flat == -math.inf).sum())
    highest = len(flat) - int((flat == math.inf).sum())
    count = min(max(round(share * len(flat)), lowest), highest)
    kept = torch.ones(len(flat), dtype=torch.bool)
    kept[torch.argsort(flat, stable=True)[:count]] = False
    parts = torch.split(kept, [values.numel() for values in ranked.values()])
    return {n: p.view_as(v) for p, (n, v) in zip(parts, ranked.items(), strict=True)}
