"""Runs one stage, from its parents to a checked artifact on disk, in each of its processes.

Every import here becomes part of the content key of every stage, so there are few.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressbench.config.instantiate import instantiate
from compressbench.core import artifact as artifacts
from compressbench.core.digests import file_digest
from compressbench.core.distributed import assert_same_on_ranks, rank
from compressbench.core.errors import TransientError, UserError
from compressbench.core.kill_points import reached
from compressbench.core.parametrizations import with_plain_weights
from compressbench.core.types import TRAINED, Artifact, Context, Outcome, Stage
from compressbench.models.plain import plain

OUTCOME = "outcome.json"


def build_model(config: Mapping[str, Any], where: str = "model") -> nn.Module:
    """A fresh architecture, on the CPU, in eval mode, without wrappers; `where` is its place in the
    config, for messages.
    """
    model = instantiate(config, where)
    if not isinstance(model, nn.Module):
        raise UserError(f"{where}._target_={config['_target_']} is not a torch.nn.Module")
    try:
        model = plain(model)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if model.eval() is not model:
        raise UserError(
            f"{where}: train() or eval() of {type(model).__name__} does not return the model: end "
            "it with `return self`"
        )
    return model


@dataclass(frozen=True)
class Job:
    """The description of one stage for the process that runs it; plain JSON.

    `model` is the architecture to start from, None for a stage that goes on from its parent;
    `checkpoint` a file with its weights, whose digest was `checkpoint_sha256` at planning.
    """

    name: str
    config: dict[str, Any]
    model: dict[str, Any] | None
    checkpoint: str | None
    checkpoint_sha256: str | None
    seed: int
    key: str


def execute(job: Job, parents: Mapping[str, Artifact], context: Context, folder: Path) -> None:
    """Run one stage, check that earlier work survived, and write the result into `folder`.

    On several ranks every rank comes here; all must arrive at the same tensors, and the first
    one writes.
    """
    torch.set_num_threads(context.runtime.threads)
    stage: Stage = instantiate(job.config, f"recipe.stages.{job.name}")
    inputs = dict(parents)
    if job.model is not None:
        fresh = _fresh(job.model, job, context)
        inputs["model"] = fresh if TRAINED in stage.adds else with_plain_weights(fresh)
    before = inputs["model"].properties
    reached("stage.before_work")
    outcome = stage.run(inputs, context)
    reached("stage.computed")
    artifact = with_plain_weights(outcome.artifact)
    result = replace(artifact, properties=before | stage.adds, key=job.key)
    artifacts.check(result, inputs["model"].model)
    assert_same_on_ranks(artifacts.digest(result), f"the model after {job.name}")
    context.data.verify()
    if rank() == 0:
        artifacts.save(result, folder)
        reached("stage.model_saved")
        (folder / OUTCOME).write_text(json.dumps(_plain(outcome)) + "\n")


def _fresh(config: Mapping[str, Any], job: Job, context: Context) -> Artifact:
    """The initial model of a stage: seeded weights, or those of its checkpoint."""
    with torch.random.fork_rng():
        torch.manual_seed(context.seed)
        model = build_model(config)
    if job.checkpoint is None:
        known = {TRAINED} if config.get("trained") else set()  # a module in hand may be
        return Artifact(model, config, (), frozenset(known))
    from compressbench.models.checkpoint import load_checkpoint_

    path = Path(job.checkpoint)
    load_checkpoint_(model, path)
    if file_digest(path) != job.checkpoint_sha256:
        raise TransientError(f"{path} changed while the recipe ran")
    return Artifact(model, config, (), frozenset({TRAINED}))


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        "coverage": [asdict(row) for row in outcome.coverage],
        "history": dict(outcome.history),
        "warnings": list(outcome.warnings),
        "notes": list(outcome.notes),
        "tables": {name: list(rows) for name, rows in outcome.tables.items()},
    }
