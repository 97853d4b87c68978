"""Distributes a sparsity over layers by the measured cost of pruning each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from compressbench.analysis.probe import probe_images, probe_of
from compressbench.analysis.weight_trials import costs
from compressbench.core.types import Context
from compressbench.pruning.channels.measured_widths import BATCH, IMAGES, slopes
from compressbench.pruning.weights.masking import by_share

SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # sparsities of a layer at which its cost is measured
TYPICAL_LAYERS = 20  # for time estimates before the model is known
Curve = Sequence[tuple[float, float]]  # (weights removed, cost), ascending, from (0, 0)


def curves(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    scores: Mapping[str, Tensor],
    context: Context,
) -> dict[str, Curve]:
    """Measure the cost of pruning each layer alone to each of `SHARES`.

    The cost is the divergence of the outputs in nats per sample (see `costs`), on `IMAGES`
    training images. `scores` have the shape of the weights.
    """
    batches = probe_images(context, IMAGES, BATCH)
    probe = probe_of(model, context.runtime.device)
    weights = {name: layer.get_parameter("weight").detach() for name, layer in layers.items()}
    masks = {n: [_mask(n, scores[n], weight, share) for share in SHARES]
             for n, weight in weights.items()}  # fmt: skip
    trials = [partial(_masked, n, weights[n], mask) for n in masks for mask in masks[n]]
    measured = iter(costs(probe, batches, trials, context))
    result: dict[str, Curve] = {}
    for name in masks:
        points = [(0.0, 0.0), *((float((~mask).sum()), next(measured)) for mask in masks[name])]
        result[name] = [p for i, p in enumerate(points) if i == 0 or p[0] > points[i - 1][0]]
    return result


def _mask(name: str, scores: Tensor, weight: Tensor, share: float) -> Tensor:
    return by_share({name: scores}, {name: weight == 0}, share, False)[name]


def _masked(name: str, weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {name: weight * mask}


def cheapest(
    measured: Mapping[str, Curve], sizes: Mapping[str, int], share: float
) -> dict[str, float]:
    """Density of each layer that prunes `share` of all weights at the least total cost.

    Assumes that costs of layers add up, and follows the lower convex hulls of the curves, least
    slope first. Beyond the ends of the curves, all layers lose the same share of their remaining
    weights. `sizes` are the numbers of weights.
    """
    pieces = sorted(
        (slope, number, name, curve[number + 1][0] - curve[number][0])
        for name, curve in measured.items()
        for number, slope in enumerate(slopes(curve))
    )
    gone = dict.fromkeys(sizes, 0.0)
    left = share * sum(sizes.values())
    for _, _, name, weights in pieces:
        taken = min(weights, left)
        gone[name] += taken
        left -= taken
    rest = sum(sizes.values()) - sum(gone.values())
    return {n: (sizes[n] - gone[n]) * (1.0 - left / max(rest, 1.0)) / sizes[n] for n in sizes}
