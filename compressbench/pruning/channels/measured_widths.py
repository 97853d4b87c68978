"""Scores blocks of channels by the measured cost of removing them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

from compressbench.analysis.probe import probe_images, probe_of
from compressbench.analysis.weight_trials import costs
from compressbench.core.digests import named
from compressbench.core.types import Context
from compressbench.pruning.channels.coupling import Removed
from compressbench.pruning.channels.cutter import Cutter
from compressbench.pruning.channels.limits import count
from compressbench.pruning.channels.ranking import Ranked
from compressbench.pruning.channels.removal import ignoring_weights

IMAGES, BATCH = 512, 128  # training images in all and per batch
WIDTHS = 16  # measured widths per part; costs are interpolated linearly between them
TYPICAL_BLOCKS = 40  # for time estimates before the model is known
_WEIGHED = {"macs": "macs", "latency": "macs", "params": "params", "onnx_bytes": "params"}


def by_damage(
    ranked: Sequence[Ranked], cutter: Cutter, limits: Sequence[str], context: Context
) -> list[Ranked]:
    """Score the blocks of each part by their measured cost per saving.

    Each part alone is narrowed to at most `WIDTHS` widths, as in NetAdapt (Yang et al. 2018,
    arXiv:1804.03230), but all blocks are then ranked once instead of in steps. The cost is the
    divergence of the outputs when all other layers ignore the removed channels (see `costs`), on
    `IMAGES` training images. The saving is in MACs if `macs` or `latency` is among the `limits`,
    in parameters for other limits, and in channels without limits. The score of a block is the
    slope of the lower convex hull of cost against saving, so pruning by ascending score is
    cheapest as far as costs of parts add up. Blocks whose removal fails are dropped.
    """
    weighed = next((_WEIGHED[name] for name in _WEIGHED if name in limits), "")
    whole = count(cutter.model, cutter.example)
    widths, trials = [], []
    journal = context.journal.within("savings", weighed, *named(cutter.model.state_dict()))
    before = journal.before(len(ranked))
    for done, each in enumerate(ranked):
        context.progress(done, len(ranked), f"counting savings of {each.part.layers[0]}{before}")
        unit = json.dumps([each.part.root, each.blocks])
        counted, failure = journal.once(unit, partial(_counted, each, cutter, whole, weighed))
        widths.append(_widths(each, cutter, counted))
        if failure is not None:
            cutter.failed[each.part.root] = failure
        trials += [partial(ignoring_weights, cutter.model, w.removed) for w in widths[-1]]
    batches = probe_images(context, IMAGES, BATCH)
    measured = iter(costs(probe_of(cutter.model, context.runtime.device), batches, trials, context))
    return [_scored(entry, measurable, [next(measured) for _ in measurable])
            for entry, measurable in zip(ranked, widths, strict=True)]  # fmt: skip


@dataclass(frozen=True)
class _Width:
    """A part without its first `blocks` blocks: the removed channels, and the saving."""

    blocks: int
    removed: Removed
    saved: float


def _counted(
    entry: Ranked, cutter: Cutter, whole: dict[str, float], weighed: str
) -> tuple[list[float], str | None]:
    """What the widths of `measured_at` save, as far as removal succeeds, and why one failed."""
    root, saved = entry.part.root, list[float]()
    for blocks in measured_at(len(entry.blocks)):
        going = _going(entry, blocks)
        small = cutter.alone(root, going)
        if small is None:
            break
        less = whole[weighed] - count(small, cutter.example)[weighed] if weighed else len(going)
        saved.append(float(less))
    return saved, cutter.failed.get(root)


def _going(entry: Ranked, blocks: int) -> list[int]:
    """The atoms of the first blocks."""
    return sorted(atom for block in entry.blocks[:blocks] for atom in block)


def _widths(entry: Ranked, cutter: Cutter, saved: Sequence[float]) -> list[_Width]:
    """The widths of a part to measure, in descending order."""
    numbers = measured_at(len(entry.blocks))
    return [
        _Width(blocks, cutter.coupling.removed(_going(entry, blocks)), less)
        for blocks, less in zip(numbers, saved, strict=False)
    ]


def _scored(entry: Ranked, widths: Sequence[_Width], measured: Sequence[float]) -> Ranked:
    points = [(0.0, 0.0), *zip((w.saved for w in widths), measured, strict=True)]
    steps = [b - a for a, b in pairwise([0, *(w.blocks for w in widths)])]
    scores = [s for s, step in zip(slopes(points), steps, strict=True) for _ in range(step)]
    return replace(entry, blocks=entry.blocks[: len(scores)], scores=tuple(scores))


def measured_at(blocks: int) -> list[int]:
    """Numbers of removed blocks to measure, evenly spread, ascending, including all blocks."""
    spread = {round(blocks * step / WIDTHS) for step in range(1, WIDTHS + 1)}
    return sorted(spread - {0})


def slopes(points: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    """Slopes of the lower convex hull between consecutive `points` (saving, cost).

    The points must be sorted by saving.
    """
    result: list[float] = []
    at = 0
    while at < len(points) - 1:
        (x, y), after = points[at], range(at + 1, len(points))
        rates = [(points[i][1] - y) / max(points[i][0] - x, 1e-12) for i in after]
        best = min(range(len(rates)), key=lambda i: (rates[i], -i))
        result += [rates[best]] * (best + 1)
        at += best + 1
    return tuple(result)
