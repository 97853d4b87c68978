"""`-m` with lists of values: Hydra's own sweeper, without the `multirun.yaml` that it writes.

That file has the config and the command as they were given, with the passwords in them; the
`recipe.yaml` and `report.json` of each job have both without.
"""

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


class GridSweeper(BasicSweeper):
    """Runs every combination of the lists of a command line."""

    def sweep(self, arguments: list[str]) -> Any:
        assert self.hydra_context is not None
        assert self.launcher is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        done: list[Any] = []
        for batch in self.split_arguments(overrides, self.max_batch_size):
            self.validate_batch_is_legal(batch)
            results = self.launcher.launch(batch, initial_job_idx=sum(map(len, done)))
            for job in results:
                _ = job.return_value  # raises what the job raised
            done.append(results)
        return done


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="basic",
    node={
        "_target_": "hydra_plugins.compressbench_pareto.grid.GridSweeper",
        "max_batch_size": None,
        "params": None,
    },
    provider="compressbench",
    replace=True,
)
