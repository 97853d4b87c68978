"""Every combination, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def grid(seed: int, number: int) -> BaseSampler:
    """All combinations of choices and ranges, in an order that depends on the seed alone.

    The combination belongs to the trial's number; nothing is left for the sampler to draw.
    """
    from compressbench.search.samplers.by_number import ByNumber

    return ByNumber(seed)
