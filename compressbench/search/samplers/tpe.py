"""Tree-structured Parzen estimator."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressbench.core.validation import check_integer
from compressbench.search.samplers.streams import stream

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


def tpe(
    seed: int, number: int, n_startup_trials: int = 10, n_ei_candidates: int = 24
) -> BaseSampler:
    """Sample where good trials are denser than bad ones (Bergstra et al. 2011; Ozaki et al. 2022).

    `number` is the first trial that this worker asks for. Trials that still run count as bad, so
    that workers spread out.
    """
    check_integer("n_startup_trials", n_startup_trials, 1)
    check_integer("n_ei_candidates", n_ei_candidates, 1)
    from optuna.samplers import TPESampler

    return TPESampler(
        seed=stream(seed, number),
        n_startup_trials=n_startup_trials,
        n_ei_candidates=n_ei_candidates,
    )
