"""Which channels go: importance per channel, and the choice of the least important blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from compressbench.criteria.scores import of_channels, over_mean
from compressbench.stages.coupling import Unit

Atom = tuple[int, ...]


def channel_scores(
    scores: Mapping[str, Tensor], layers: Mapping[str, nn.Module]
) -> dict[str, Tensor]:
    """Layer -> importance of its output channels over their mean, float64 [out channels]."""
    return {name: over_mean(of_channels(layers[name], score)) for name, score in scores.items()}


@dataclass(frozen=True)
class Ranked:
    """The atoms of a unit, the least important first, in blocks to be removed one after the other.

    After each block the channels left are a multiple of `round_to` (of the atom's size, too), and
    never fewer than the floor. `scores` holds the mean importance of each block, ascending.
    """

    unit: Unit
    blocks: tuple[tuple[Atom, ...], ...]
    scores: tuple[float, ...]

    @classmethod
    def of(cls, unit: Unit, scores: Mapping[str, Tensor], round_to: int, floor: int) -> Ranked:
        worth = [(_worth(unit, atom, scores), atom) for atom in unit.atoms]
        ranked = sorted(worth)  # of equal importance, the lower channels first
        step = math.lcm(round_to, unit.size) // unit.size
        kept, start = len(ranked), 0
        blocks: list[tuple[Atom, ...]] = []
        means = [0.0]
        while True:
            count = kept % step or step
            if (kept - count) * unit.size < max(floor, 1):
                return cls(unit, tuple(blocks), tuple(means[1:]))
            block = ranked[start : start + count]
            blocks.append(tuple(atom for _, atom in block))
            mean = sum(value for value, _ in block) / count
            means.append(max(mean, means[-1]))  # rounding must not change the order of blocks
            kept, start = kept - count, start + count


def _worth(unit: Unit, atom: Atom, scores: Mapping[str, Tensor]) -> float:
    """The mean importance of an atom's channels over the layers they come from."""
    values: list[float] = []
    for name in unit.layers:
        coupled = unit.family.coupled[name, "out"]
        values.extend(float(scores[name][channel]) for root in atom for channel in coupled[root])
    return sum(values) / len(values)


def choose(pool: Sequence[Ranked], share: float) -> list[tuple[Ranked, list[Atom]]]:
    """The atoms of each of `pool` to remove: the least important blocks of all, as long as each
    brings the removed channels nearer to `share` of all channels.
    """
    target = share * sum(one.unit.width for one in pool)
    order = sorted(
        (score, number, position)
        for number, one in enumerate(pool)
        for position, score in enumerate(one.scores)
    )
    chosen: list[list[Atom]] = [[] for _ in pool]
    removed = 0
    for _, number, position in order:
        block = pool[number].blocks[position]
        count = len(block) * pool[number].unit.size
        if not abs(removed + count - target) < abs(removed - target):
            break
        chosen[number].extend(block)
        removed += count
    return list(zip(pool, chosen, strict=True))
