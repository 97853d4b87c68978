"""What blocks of channels cost, measured: each set of coupled layers is narrowed alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from compressbench.core import Context
from compressbench.sensitivities.probe import answers_of, moved, probe_images, probe_of
from compressbench.stages.cutting import Cut, Cutter
from compressbench.stages.limits import count
from compressbench.stages.ranking import Ranked

IMAGES, BATCH = 512, 128  # training images; those that normalize together
WIDTHS = 16  # of a set of layers that are measured; between them costs are taken to be linear
TYPICAL_BLOCKS = 40  # for an estimate of time before there is a model
_WEIGHED = {"macs": "macs", "latency": "macs", "params": "params", "onnx_bytes": "params"}


def by_damage(
    ranked: Sequence[Ranked], cutter: Cutter, limits: Sequence[str], context: Context
) -> list[Ranked]:
    """The same blocks, each scored by what it costs over what it saves: measured widths as in
    NetAdapt (Yang et al. 2018, arXiv:1804.03230), whose steps are one ranking here.

    Every unit is cut to each of its widths, to `WIDTHS` of them where there are more, the others as
    they are. The cost is how far the
    answers move, in nats a sample (see `moved`), on `IMAGES` training images; what is saved
    are products where `macs` or `latency` is among the `limits`, else parameters under another
    limit, else channels. A score is the slope of the lower convex hull of cost against saving, so
    that one ranking of all is the cheapest way down, as far as costs add up. Units that cannot be
    cut lose their blocks.
    """
    batches = probe_images(context, IMAGES, BATCH)
    device = context.runtime.device
    answers = answers_of(probe_of(cutter.model, device), batches)
    weighed = next((_WEIGHED[name] for name in _WEIGHED if name in limits), "")
    whole = count(cutter.model, cutter.example)
    found = []
    for done, one in enumerate(ranked):
        context.progress(done, len(ranked), f"what {one.unit.layers[0]} costs")
        points, steps = [(0.0, 0.0)], []
        for before, after in pairwise([0, *measured_at(len(one.blocks))]):
            going = sorted(c for block in one.blocks[:after] for atom in block for c in atom)
            cut = cutter.cut({one.unit.family.root: going})
            if not cut.removed:  # not provable
                break
            saved = _saved(cut, whole, weighed, cutter) if weighed else float(len(going))
            points.append((saved, moved(probe_of(cut.model, device), batches, answers)))
            steps.append(after - before)
        scores = [s for s, count in zip(slopes(points), steps, strict=True) for _ in range(count)]
        found.append(replace(one, blocks=one.blocks[: len(scores)], scores=tuple(scores)))
    return found


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


def _saved(cut: Cut, whole: dict[str, float], weighed: str, cutter: Cutter) -> float:
    return whole[weighed] - count(cut.model, cutter.example)[weighed]
