"""NSGA-III."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressbench.core.validation import check_integer
from compressbench.search.samplers.streams import stream

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def nsgaiii(seed: int, number: int, population_size: int = 20) -> BaseSampler:
    """The genetic algorithm with reference directions (Deb and Jain 2014).

    The first `population_size` trials are random. `number` is the first that this worker asks for.
    """
    check_integer("population_size", population_size, 2)
    from optuna.samplers import NSGAIIISampler

    return NSGAIIISampler(seed=stream(seed, number), population_size=population_size)
