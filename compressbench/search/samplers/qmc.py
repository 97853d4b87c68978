"""Quasi-random numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressbench.core.errors import UserError
from compressbench.core.validation import check_flag

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

_SEQUENCES = ("sobol", "halton")


def qmc(seed: int, number: int, sequence: str = "sobol", scramble: bool = True) -> BaseSampler:
    """Points that cover the space more evenly than random ones (Bergstra and Bengio 2012).

    All workers draw from one sequence, so the seed is the sweep's alone.
    """
    if sequence not in _SEQUENCES:
        raise UserError(f"sequence must be sobol or halton, got {sequence!r}")
    check_flag("scramble", scramble)
    from optuna.samplers import QMCSampler

    return QMCSampler(
        seed=seed, qmc_type=sequence, scramble=scramble, warn_independent_sampling=False
    )
