"""Run a recipe on one architecture in this process, and say how it ended."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressbench.config.boundary import freeze
from compressbench.config.compose import compose_config
from compressbench.config.groups import config_folder
from compressbench.config.instantiate import instantiate
from compressbench.config.run_config import RunConfig
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.types import TRAINED, Artifact, Context, Runtime, Step
from compressbench.data.digits import Digits
from compressbench.engine.executor import run
from compressbench.engine.model_trial import try_models
from compressbench.engine.prepare import Prepared, prepare
from compressbench.pruning.criteria.l2 import L2
from compressbench.pruning.prune_channels import PruneChannels
from tests.zoo.compaction import compaction_problems, redraw_
from tests.zoo.judge import problems, some_inputs

DEBUG = ("trainer=debug", "trainer.threads=1", "tracking=none")
CUT = ("recipe.stages.prune.sparsity=0.5", "recipe.stages.prune.round_to=2")
RECIPES: Mapping[str, Sequence[str]] = {
    "quantize": ("recipe.stages.train.epochs=1",),
    "prune_channels": (
        "recipe.stages.train.epochs=1", "recipe.stages.finetune.epochs=1", *CUT,
    ),
    "prune_then_quant": ("recipe.stages.train.epochs=1", "recipe.stages.finetune.epochs=1"),
    "prune": ("recipe.stages.train.epochs=1", "recipe.stages.finetune.epochs=1"),
    "qat": ("recipe.stages.train.epochs=1", "recipe.stages.qat.epochs=1"),
    "distill_mixed": ("recipe.stages.train.epochs=1", "recipe.stages.distill.epochs=1"),
}  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    `kind` is "right"; "refused" for one line before training; or else: "wrong" (a judge's
    objection), "late" (the user's mistake, said after training), "check" (a check of ours that
    failed after training), "crash" or "timeout".
    """

    kind: str
    text: str = ""
    warnings: tuple[str, ...] = ()
    cut: Mapping[str, str] = field(default_factory=dict)  # layer -> channels that it lost
    model: nn.Module | None = field(default=None, repr=False)


def prepared(model: Mapping[str, Any], recipe: str, store: Path, more: Sequence[str]) -> Prepared:
    """A run at debug size that could start. Raises UserError for what is refused."""
    os.environ["COMPRESSBENCH_ALLOW"] = "tests.zoo.*"
    freeze()
    os.environ["COMPRESSBENCH_STORE"] = str(store)
    torch.set_num_threads(1)
    config = compose_config([f"recipe={recipe}", *DEBUG, *more], [config_folder()])
    ready = prepare(RunConfig.of({**config, "model": dict(model)}))
    try_models(ready.plan, ready.context)
    return ready


def steps_of(
    model: Mapping[str, Any], recipe: str, store: Path, more: Sequence[str] = ()
) -> list[Step]:
    """The stages of a run that must end well."""
    ready = prepared(model, recipe, store, more)
    return [*run(ready.plan, ready.context)]


def run_recipe(
    model: Mapping[str, Any], recipe: str, store: Path, more: Sequence[str] = ()
) -> Ended:
    """Run a recipe at debug size, and judge every stage of it."""
    try:
        ready = prepared(model, recipe, store, [*RECIPES[recipe], *more])
    except UserError as error:
        return Ended("refused" if len(str(error).splitlines()) == 1 else "wrong", str(error))
    steps: list[Step] = []
    try:
        steps.extend(run(ready.plan, ready.context))
    except UserError as error:
        return Ended("late", str(error))
    except CheckFailedError as error:
        return Ended("check", str(error))
    found = problems(steps, ready.context.data)
    warnings = tuple(f"{step.name}: {w}" for step in steps for w in step.warnings)
    return _ended(found, warnings, steps[-1].artifact)


def _ended(found: Sequence[str], warnings: Sequence[str], artifact: Artifact) -> Ended:
    kind = "wrong" if found else "right"
    return Ended(kind, "; ".join(found), tuple(warnings), _cut(artifact), artifact.model)


def cut_channels(model: Mapping[str, Any]) -> Ended:
    """Half of the channels of an untrained model with random values, without a file: a second
    where a recipe takes ten.
    """
    os.environ["COMPRESSBENCH_ALLOW"] = "tests.zoo.*"
    freeze()
    torch.set_num_threads(1)
    data, options = Digits(), {k: v for k, v in model.items() if k != "student"}
    config = {"input_shape": data.spec.input_shape, "num_classes": data.spec.num_classes, **options}
    stage = PruneChannels(L2(), 0.5, round_to=2)
    try:
        made: nn.Module = instantiate(config)
        redraw_(made)
        start = Artifact(made.eval(), config, (), frozenset({TRAINED}))
        outcome = stage.run({"model": start}, Context(data, Runtime(), 3, Path(), instantiate))
    except (UserError, CheckFailedError) as error:
        return Ended("refused", str(error))
    inputs = some_inputs(data)
    found = [*compaction_problems(start, outcome.artifact, outcome.warnings, inputs)]
    return _ended(found, outcome.warnings, outcome.artifact)


def _cut(artifact: Artifact) -> dict[str, str]:
    """Layers that lost output channels."""
    return {
        name: f"-{len(sides['out'])}"
        for edit in artifact.edits
        if edit["kind"] == "resize"
        for name, sides in edit["removed"].items()
        if sides.get("out")
    }
