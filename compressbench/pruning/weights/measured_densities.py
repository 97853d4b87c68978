"""How many weights each layer may keep, by what its zeros are measured to cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor, nn

from compressbench.analysis.probe import probe_images, probe_of
from compressbench.analysis.weight_trials import costs
from compressbench.core.types import Context
from compressbench.pruning.channels.measured_widths import BATCH, IMAGES, slopes
from compressbench.pruning.weights.masking import by_share

SHARES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # of a layer's weights, where its curve is measured
TYPICAL_LAYERS = 20  # for an estimate of time before there is a model
Curve = Sequence[tuple[float, float]]  # (weights removed, cost), ascending, from (0, 0)


def curves(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    scores: Mapping[str, Tensor],
    context: Context,
) -> dict[str, Curve]:
    """Layer -> what it costs to zero the least important of its weights, the others as they are:
    how far the answers move, in nats a sample (see `costs`), on `IMAGES` training images.
    """
    batches = probe_images(context, IMAGES, BATCH)
    probe = probe_of(model, context.runtime.device)
    own = {name: layer.get_parameter("weight").detach() for name, layer in layers.items()}
    masks = {n: [_mask(n, scores[n], weight, share) for share in SHARES]
             for n, weight in own.items()}  # fmt: skip
    trials = [partial(_masked, n, own[n], mask) for n, some in masks.items() for mask in some]
    measured = iter(costs(probe, batches, trials, context))
    found: dict[str, Curve] = {}
    for name, some in masks.items():
        points = [(0.0, 0.0), *((float((~mask).sum()), next(measured)) for mask in some)]
        found[name] = [p for i, p in enumerate(points) if i == 0 or p[0] > points[i - 1][0]]
    return found


def _mask(name: str, scores: Tensor, weight: Tensor, share: float) -> Tensor:
    return by_share({name: scores}, {name: weight == 0}, share, False)[name]


def _masked(name: str, weight: Tensor, mask: Tensor) -> dict[str, Tensor]:
    return {name: weight * mask}


def cheapest(
    measured: Mapping[str, Curve], sizes: Mapping[str, int], share: float
) -> dict[str, float]:
    """Density of each layer such that `share` of all weights is gone at the least sum of costs, as
    far as costs add up: down the convex hulls of the curves, the flattest piece first. Beyond the
    curves' ends all layers give the same part of what they have left.
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
