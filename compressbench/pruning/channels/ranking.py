"""Ranks channels by importance, and chooses the least important blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from compressbench.pruning.channels.coupling import GroupPart
from compressbench.pruning.channels.removal import Cuts
from compressbench.pruning.criteria.scores import of_channels, over_mean

Worth = Callable[[GroupPart, int], float]  # of an atom of a part


def channel_scores(
    scores: Mapping[str, Tensor], layers: Mapping[str, nn.Module], normalize: bool = True
) -> dict[str, Tensor]:
    """Importance of each layer's output channels, float64 [out channels].

    `normalize` divides it by the layer's mean.
    """
    result = {name: of_channels(layers[name], score) for name, score in scores.items()}
    return {name: over_mean(score) for name, score in result.items()} if normalize else result


def step_of(part: GroupPart, round_to: int) -> int:
    """The least number of atoms whose channels are a multiple of `round_to` in every layer."""
    return math.lcm(*(math.lcm(round_to, size) // size for size in part.sizes.values()))


@dataclass(frozen=True)
class Ranked:
    """The atoms of a part, least important first, in blocks that are removed in this order.

    After each block the number of remaining channels in every layer is a multiple of `round_to`
    and of the atom's size, and at least `least` atoms remain. `scores` has the mean importance of
    each block, ascending.
    """

    part: GroupPart
    blocks: tuple[tuple[int, ...], ...]
    scores: tuple[float, ...]

    @classmethod
    def of(cls, part: GroupPart, worth: Worth, round_to: int, least: int) -> Ranked:
        # of equal importance, the lower channels first
        ranked = sorted((worth(part, atom), atom) for atom in part.atoms)
        step = step_of(part, round_to)
        kept, start = len(ranked), 0
        blocks: list[tuple[int, ...]] = []
        means = [-math.inf]
        while True:
            count = kept % step or step
            if kept - count < max(least, 1):
                return cls(part, tuple(blocks), tuple(means[1:]))
            block = ranked[start : start + count]
            blocks.append(tuple(atom for _, atom in block))
            mean = sum(value for value, _ in block) / count
            means.append(max(mean, means[-1]))  # keep blocks in order in spite of rounding
            kept, start = kept - count, start + count


def mean_worth(part: GroupPart, atom: int, scores: Mapping[str, Tensor]) -> float:
    """The mean importance of an atom's channels over the layers that compute them."""
    values: list[float] = []
    for name, channels in part.channels.items():
        values.extend(float(scores[name][channel]) for channel in channels[atom])
    return sum(values) / len(values)


def choose(pool: Sequence[Ranked], share: float) -> list[tuple[Ranked, list[int]]]:
    """Choose the atoms to remove: the least important blocks of the whole pool.

    Blocks are taken as long as each brings the number of removed channels closer to the share
    `share` of all channels.
    """
    target = share * sum(item.part.width for item in pool)
    order = sorted(
        (score, number, position)
        for number, item in enumerate(pool)
        for position, score in enumerate(item.scores)
    )
    chosen: list[list[int]] = [[] for _ in pool]
    removed = 0
    for _, number, position in order:
        block = pool[number].blocks[position]
        count = len(block) * pool[number].part.size
        if not abs(removed + count - target) < abs(removed - target):
            break
        chosen[number].extend(block)
        removed += count
    return list(zip(pool, chosen, strict=True))


def by_root(chosen: Iterable[tuple[Ranked, list[int]]]) -> Cuts:
    """Map the root of each group to its atoms to remove."""
    cuts: dict[str, list[int]] = {}
    for item, atoms in chosen:
        if atoms:
            cuts.setdefault(item.part.root, []).extend(atoms)
    return {root: sorted(atoms) for root, atoms in cuts.items()}


def without_one(ranked: Sequence[Ranked], cuts: Cuts) -> Iterator[Cuts]:
    """Yield variants of `cuts` with the last block of a part put back, most important first."""
    cut = {root: set(atoms) for root, atoms in cuts.items()}
    last = []
    for number, item in enumerate(ranked):
        root = item.part.root
        taken = [block for block in item.blocks if cut.get(root, set()).issuperset(block)]
        if taken:
            last.append((item.scores[len(taken) - 1], number, root, taken[-1]))
    for _, _, root, block in sorted(last, reverse=True):
        left = cut[root] - set(block)
        yield {**cuts, root: sorted(left)} if left else {r: c for r, c in cuts.items() if r != root}


def choose_below(pool: Sequence[Ranked]) -> list[tuple[Ranked, list[int]]]:
    """Choose the atoms of all blocks whose worth by `below` is 0."""
    chosen = []
    for item in pool:
        blocks = zip(item.blocks, item.scores, strict=True)
        chosen.append((item, [atom for block, score in blocks if score <= 0 for atom in block]))
    return chosen


def below(parts: Sequence[tuple[Mapping[str, Tensor], float]]) -> Worth:
    """A worth that is 0 for atoms below a threshold, and at least 1 for all others.

    `parts` are pairs of scores and threshold; an atom is below if its mean importance is less
    than the threshold in any of them.
    """

    def worth(part: GroupPart, atom: int) -> float:
        values = [mean_worth(part, atom, scores) for scores, _ in parts]
        low = any(v < least for v, (_, least) in zip(values, parts, strict=True))
        return 0.0 if low else 1.0 + max(values[0], 0.0)

    return worth
