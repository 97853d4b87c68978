"""Random search."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def random(seed: int, number: int) -> BaseSampler:
    """Uniform settings (Bergstra and Bengio 2012) that depend on seed and trial number alone.

    So a sweep gives the same trials for any number of workers, and after any interruption.
    """
    from compressbench.search.samplers.by_number import ByNumber

    return ByNumber(seed)
