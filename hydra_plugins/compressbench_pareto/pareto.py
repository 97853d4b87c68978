"""`hydra/sweeper=pareto`: hands the overrides of a multirun to compressbench.search.

Hydra imports this in every one of its programs, so nothing heavy may be imported at the top.
"""

from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

_OUR_PROCESSES = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
_TYPED = "command-line"  # Hydra's name for the config folder that --config-dir names
_IMPLIED = ("hydra/sweeper=", "hydra.mode=")


class ParetoSweeper(Sweeper):
    """Searches the front of several objectives with workers of our own, or of a launcher."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> Any:
        from compressbench.search.command import sweep

        hydra = self.config.hydra
        folders = [Path(s.path) for s in hydra.runtime.config_sources if s.provider == _TYPED]
        chosen = [o for o in hydra.overrides.hydra if not o.startswith(_IMPLIED)]
        own = hydra.launcher._target_ == _OUR_PROCESSES
        return sweep(
            arguments,
            folders,
            ["-m", *(f"--config-dir={folder}" for folder in folders), *chosen, *arguments],
            None if own else self._launch,
        )

    def _launch(self, workers: int, spec: Path) -> None:
        """Run workers as jobs of the launcher that the command line chose."""
        from hydra.core.plugins import Plugins
        from omegaconf import read_write

        from compressbench.search.cluster import run_worker

        place = self.config.hydra.sweep
        with read_write(place):
            place.dir = str(spec.parent / "jobs")
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=self.context, task_function=run_worker, config=self.config
        )
        jobs = [
            [f"+search.worker.spec='{spec}'", f"+search.worker.index={index}"]
            for index in range(workers)
        ]
        for job in launcher.launch(jobs, initial_job_idx=0):
            _ = job.return_value  # raises what the job raised


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="pareto",
    node={"_target_": "hydra_plugins.compressbench_pareto.pareto.ParetoSweeper"},
    provider="compressbench",
)
