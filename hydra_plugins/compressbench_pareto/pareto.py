"""`hydra/sweeper=pareto`: hands the overrides of a multirun to compressbench.search.

Hydra imports this in every one of its programs, so nothing heavy may be imported at the top.
"""

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ParetoSweeper(Sweeper):
    """Searches the front of several objectives with workers of our own."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.config = config

    def sweep(self, arguments: list[str]) -> Any:
        from compressbench.search.command import sweep

        return sweep(arguments)


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="pareto",
    node={"_target_": "hydra_plugins.compressbench_pareto.pareto.ParetoSweeper"},
    provider="compressbench",
)
