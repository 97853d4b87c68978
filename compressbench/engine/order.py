"""Checks the order of a recipe's stages before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

from compressbench.core.errors import UserError
from compressbench.core.types import Stage

MAX_PERMUTED = 7  # 5,040 orders; longer recipes get the reason without a suggestion


def check_order(stages: Mapping[str, Stage], fresh: frozenset[str] = frozenset()) -> None:
    """Raise UserError with the reason and the nearest legal order unless every stage can run.

    `fresh` are the stages that start from a new model instead of the one before.
    """
    reason = _first_conflict(list(stages), stages, fresh)
    if reason is None:
        return
    legal = _nearest_legal(list(stages), stages, fresh)
    advice = f"; an order that works: {', '.join(legal)}" if legal else ""
    raise UserError(f"recipe.stages: {reason}{advice}")


def properties_after(stage: Stage, before: frozenset[str]) -> frozenset[str]:
    return before | stage.adds


def _first_conflict(
    order: Sequence[str], stages: Mapping[str, Stage], fresh: frozenset[str]
) -> str | None:
    has: frozenset[str] = frozenset()
    by: dict[str, str] = {}
    for name in order:
        stage = stages[name]
        if name in fresh:
            has, by = frozenset(), {}
        missing = sorted(stage.needs - has)
        if missing:
            return f"{name} needs a model that is {' and '.join(missing)}"
        undone = sorted(stage.destroys & has)
        if undone:
            return f"{name} would undo what {by[undone[0]]} did ({undone[0]})"
        by |= dict.fromkeys(stage.adds - has, name)
        has = properties_after(stage, has)
    return None


def _nearest_legal(
    order: list[str], stages: Mapping[str, Stage], fresh: frozenset[str]
) -> list[str] | None:
    """The legal order with the fewest swapped pairs; the first one of several."""
    if len(order) > MAX_PERMUTED:
        return None
    rank = {name: i for i, name in enumerate(order)}
    legal = (
        candidate
        for candidate in permutations(order)
        if _first_conflict(candidate, stages, fresh) is None
    )
    best = min(legal, key=lambda c: _swapped_pairs([rank[n] for n in c]), default=None)
    return list(best) if best else None


def _swapped_pairs(ranks: list[int]) -> int:
    return sum(a > b for i, a in enumerate(ranks) for b in ranks[i + 1 :])
