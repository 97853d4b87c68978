"""What blocks of channels cost, measured: each set of coupled layers is narrowed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from compressbench.analysis.probe import probe_images, probe_of
from compressbench.analysis.weight_trials import costs
from compressbench.core.types import Context
from compressbench.pruning.channels.cutter import Cutter
from compressbench.pruning.channels.limits import count
from compressbench.pruning.channels.ranking import Ranked
from compressbench.pruning.channels.removal import Removed, ignoring_weights, removed_channels

IMAGES, BATCH = 512, 128  # training images; those that normalize together
WIDTHS = 16  # of a set of layers that are measured; between them costs are taken to be linear
TYPICAL_BLOCKS = 40  # for an estimate of time before there is a model
_WEIGHED = {"macs": "macs", "latency": "macs", "params": "params", "onnx_bytes": "params"}


def by_damage(
    ranked: Sequence[Ranked], cutter: Cutter, limits: Sequence[str], context: Context
) -> list[Ranked]:
    """The same blocks, each scored by what it costs over what it saves: measured widths as in
    NetAdapt (Yang et al. 2018, arXiv:1804.03230), whose steps are one ranking here.

    Every part is narrowed to each of its widths, to `WIDTHS` of them where there are more, the
    others as they are. The cost is how far the answers move when other layers ignore its channels
    (see `costs`), on `IMAGES` training images; what is saved are products where `macs` or
    `latency` is among the `limits`, else parameters under another limit, else channels. A score is
    the slope of the lower convex hull of cost against saving, so that one ranking of all is the
    cheapest way down, as far as costs add up. Units that cannot be cut lose their blocks.
    """
    weighed = next((_WEIGHED[name] for name in _WEIGHED if name in limits), "")
    whole = count(cutter.model, cutter.example)
    widths, trials = [], []
    for done, one in enumerate(ranked):
        context.progress(done, len(ranked), f"what {one.part.layers[0]} saves")
        widths.append(_widths(one, cutter, whole, weighed))
        trials += [partial(ignoring_weights, cutter.model, w.removed) for w in widths[-1]]
    batches = probe_images(context, IMAGES, BATCH)
    measured = iter(costs(probe_of(cutter.model, context.runtime.device), batches, trials, context))
    return [_scored(one, own, [next(measured) for _ in own])
            for one, own in zip(ranked, widths, strict=True)]  # fmt: skip


@dataclass(frozen=True)
class _Width:
    """A part without its first `blocks` blocks: the channels that go, and what that saves."""

    blocks: int
    removed: Removed
    saved: float


def _widths(one: Ranked, cutter: Cutter, whole: dict[str, float], weighed: str) -> list[_Width]:
    """The widths to measure, wide ones first; none where the part cannot be cut."""
    root, found = one.part.group.root, []
    for blocks in measured_at(len(one.blocks)):
        going = sorted(c for block in one.blocks[:blocks] for atom in block for c in atom)
        small = cutter.alone(root, going)
        if small is None:
            break
        saved = whole[weighed] - count(small, cutter.example)[weighed] if weighed else len(going)
        found.append(_Width(blocks, removed_channels(cutter.groups, {root: going}), float(saved)))
    return found


def _scored(one: Ranked, widths: Sequence[_Width], measured: Sequence[float]) -> Ranked:
    points = [(0.0, 0.0), *zip((w.saved for w in widths), measured, strict=True)]
    steps = [b - a for a, b in pairwise([0, *(w.blocks for w in widths)])]
    scores = [s for s, step in zip(slopes(points), steps, strict=True) for _ in range(step)]
    return replace(one, blocks=one.blocks[: len(scores)], scores=tuple(scores))


def measured_at(blocks: int) -> list[int]:
    """After how many blocks it is measured, evenly spread, ascending; the last one included."""
    spread = {round(blocks * step / WIDTHS) for step in range(1, WIDTHS + 1)}
    return sorted(spread - {0})


def slopes(points: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """Of the lower convex hull over each step between `points` (saved, cost), saved ascending."""
    found: list[float] = []
    at = 0
    while at < len(points) - 1:
        (x, y), after = points[at], range(at + 1, len(points))
        rates = [(points[i][1] - y) / max(points[i][0] - x, 1e-12) for i in after]
        best = min(range(len(rates)), key=lambda i: (rates[i], -i))
        found += [rates[best]] * (best + 1)
        at += best + 1
    return tuple(found)
