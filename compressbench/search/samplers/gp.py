"""Gaussian processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressbench.core.validation import check_flag, check_integer
from compressbench.search.samplers.streams import stream

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def gp(
    seed: int, number: int, n_startup_trials: int = 10, deterministic_objective: bool = False
) -> BaseSampler:
    """Gaussian-process optimization of the expected hypervolume gained (Daulton et al. 2020).

    A second or two for each trial. `number` is the first that this worker asks for.
    """
    check_integer("n_startup_trials", n_startup_trials, 1)
    check_flag("deterministic_objective", deterministic_objective)
    from optuna.samplers import GPSampler

    return GPSampler(
        seed=stream(seed, number),
        n_startup_trials=n_startup_trials,
        deterministic_objective=deterministic_objective,
    )
