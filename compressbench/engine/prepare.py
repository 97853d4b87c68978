"""Builds everything a run needs from its config; nothing is trained or written yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from compressbench.config.instantiate import instantiate
from compressbench.config.run_config import RunConfig
from compressbench.core.errors import UserError
from compressbench.core.types import Data
from compressbench.engine.context import RunContext
from compressbench.engine.data_checks import check_data
from compressbench.engine.plan import Planned, make_plan
from compressbench.engine.runtime import resolve
from compressbench.export.opsets import check_opset
from compressbench.store.entries import Store
from compressbench.tasks.choice import check_metric
from compressbench.tracking.trackers import Tracker


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start."""

    config: RunConfig
    plan: list[Planned]
    context: RunContext
    tracker: Tracker

    def with_context(self, **changes: Any) -> Self:
        """A copy with some fields of its context replaced."""
        return replace(self, context=replace(self.context, **changes))


def prepare(config: RunConfig, data: Data | None = None) -> Prepared:
    """Build the dataset, unless it is given as `data`, and the tracker; lay out the recipe.

    Raises UserError for whatever cannot work, before anything is trained.
    """
    check_opset(config.opset)
    runtime = resolve(config.trainer)
    tracker: Tracker = _built("tracking", config.tracking, "start")
    if data is None:
        data = _built("dataset", config.dataset, "manifest")
    check_metric(data.spec)
    plan = make_plan(
        config.stages,
        model=config.model,
        dataset=config.dataset,
        data=data,
        runtime=runtime,
        seed=config.seed,
        opset=config.opset,
    )
    context = RunContext(
        store=Store.default(),
        data=data,
        dataset=config.dataset,
        runtime=runtime,
        checkpoint_seconds=config.checkpoint_seconds,
        opset=config.opset,
    )
    notes = check_data(data, context.data_identity, context.store, config.max_overlap)
    return Prepared(config, plan, replace(context, data_notes=notes), tracker)


def _built(group: str, section: Mapping[str, Any], method: str) -> Any:
    """Instantiate a config group and check that the object has `method`."""
    made = instantiate(section, group)
    if not callable(getattr(made, method, None)):
        raise UserError(f"{group}._target_={section['_target_']} is not a {group}")
    return made
