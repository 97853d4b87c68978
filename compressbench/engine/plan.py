"""Plans a recipe before it runs: builds and checks its stages, finds parents, computes keys.

Stages and models are built here, to be checked and keyed, and built again by `stage_job` where a
stage runs: that may be another process (a rank), on another day (a resumed run), or never (a stage
that the store has). What passes between the two is plain JSON, `stage_job.Job`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from compressbench.config.instantiate import instantiate, own_targets
from compressbench.core.digests import file_digest
from compressbench.core.errors import LimitError, UserError
from compressbench.core.types import CHANNEL_PRUNED, Data, Runtime, Stage
from compressbench.core.validation import check_seed, shown
from compressbench.engine.data_identity import identify
from compressbench.engine.environment import machine
from compressbench.engine.first_pass import reason
from compressbench.engine.model_config import (
    STUDENT,
    checked_architecture,
    student_of,
)
from compressbench.engine.order import check_order
from compressbench.engine.stage_job import Job
from compressbench.engine.task_checks import check_task
from compressbench.engine.teachers import teachers_of
from compressbench.export.opsets import NEWEST
from compressbench.store.keys import content_key
from compressbench.store.sources import library_versions, source_digest, versions

SCHEMA = 1
_STAGE_NAME = re.compile(r"\w[\w-]{0,63}")  # also part of file names
_FIT_LIBRARIES = ("torch", "pytorch-lightning")
_EXPORTER = "compressbench.export.onnx.export_onnx"
_TIMER = "compressbench.measure.latency.measure_latency"
_EXPORT_LIBRARIES = ("onnx", "onnxscript", "onnx-ir", "onnxruntime", "scipy")
_ALWAYS_RUNS = ("compressbench.engine.stage_job.execute",)


@dataclass(frozen=True)
class Planned:
    """One stage of a plan: its job, its parents, and the parts of its content key.

    `parents` maps roles ("model", "teacher") to names of earlier stages.
    """

    job: Job
    stage: Stage
    parents: dict[str, str]
    parts: dict[str, Any]
    begins_with: torch.nn.Module  # the untrained architecture that its chain of stages starts from
    model_place: str  # of that architecture in the config, for messages
    timed: bool = False  # its result, or a parent's, depends on measured latency

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def key(self) -> str:
        return self.job.key

    @property
    def kind(self) -> str:
        return type(self.stage).__name__.lower()


@dataclass(frozen=True)
class _Recipe:
    """The arguments of `make_plan`, shared by all its stages."""

    stages: Mapping[str, Any]
    model: Mapping[str, Any]
    dataset: Mapping[str, Any]
    data: Data
    runtime: Runtime
    seed: int
    opset: int

    @cached_property
    def data_identity(self) -> dict[str, Any]:
        return identify(self.dataset, self.data)


def make_plan(
    stages: Mapping[str, Any],
    *,
    model: Mapping[str, Any],
    dataset: Mapping[str, Any],
    data: Data,
    runtime: Runtime,
    seed: int,
    opset: int = NEWEST,
) -> list[Planned]:
    """Check a recipe as a whole and give every stage its content key.

    `stages` maps names to `_target_` configs, in order; a stage may carry `model` (a fresh
    architecture to start from; "student" is that of `model.student`) and `teacher` (the name of an
    earlier stage, or a list of names). Raises UserError for anything that cannot work, before any
    work is done. `opset` counts in the key of a stage that weighs exported files, the machine in
    that of one that times them.
    """
    if not isinstance(stages, Mapping) or not stages:
        raise UserError("recipe.stages is empty: name at least one stage, such as train")
    check_seed("seed", seed)
    built = {name: _build_stage(name, config) for name, config in stages.items()}
    fresh = frozenset(n for n, s in built.items() if _own_model(n, s, stages, model) is not None)
    check_order(built, fresh)
    _check_lines(built, fresh)
    recipe = _Recipe(stages, model, dataset, data, runtime, seed, opset)
    planned: dict[str, Planned] = {}
    for name, stage in built.items():
        planned[name] = _plan_stage(name, stage, recipe, planned)
    return list(planned.values())


def _build_stage(name: str, config: Any) -> Stage:
    if not isinstance(name, str) or not _STAGE_NAME.fullmatch(name):
        raise UserError(
            "the name of a stage must be letters, digits, '_' and '-', at most 64 of them, got "
            f"{shown(name)}"
        )
    where = f"recipe.stages.{name}"
    if not isinstance(config, Mapping) or "_target_" not in config:
        raise UserError(f"{where} has no _target_: it is not a stage")
    stage = instantiate(_own_options(config), where)
    if not isinstance(stage, Stage):
        raise UserError(f"{where}._target_={config['_target_']} is not a stage")
    return stage


def _check_lines(stages: Mapping[str, Stage], fresh: frozenset[str]) -> None:
    """Let each stage check the earlier stages of its own chain."""
    line: list[Stage] = []
    for name, stage in stages.items():
        line = [] if name in fresh else line
        _ask(stage, "check_line", f"recipe.stages.{name}", line)
        line = [*line, stage]


def _own_options(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ("model", "teacher")}


def _own_model(
    name: str, stage: Stage, stages: Mapping[str, Any], model: Mapping[str, Any]
) -> Mapping[str, Any] | None:
    own: Any = stages[name].get("model")
    if own == STUDENT:
        return student_of(model, name)
    if own is None and (getattr(stage, "starts_fresh", False) or name == next(iter(stages))):
        return model
    found: Mapping[str, Any] | None = own
    return found


def _plan_stage(name: str, stage: Stage, recipe: _Recipe, before: Mapping[str, Planned]) -> Planned:
    start = _start_of(name, stage, recipe, before)
    parents = dict(start.parents)
    where, spec = f"recipe.stages.{name}", recipe.data.spec
    _ask(stage, "check_model", where, start.begins_with, spec)
    if not any(CHANNEL_PRUNED in s.adds for s in _line(start.parents.get("model"), before)):
        _ask(stage, "check_limits", where, start.begins_with, spec)
    teachers = teachers_of(name, recipe.stages[name], before, where)
    parents |= teachers
    if teachers:
        taught_by = [before[teacher].begins_with for teacher in teachers.values()]
        _ask(stage, "check_teachers", where, start.begins_with, taught_by, spec)
    taken = start.checkpoint is not None or bool((start.architecture or {}).get("trained"))
    check_task(stage, spec, where, taught=bool(teachers), taken=taken)
    parts = _key_parts(name, stage, recipe, start, {r: before[p].key for r, p in parents.items()})
    job = Job(
        name=name,
        config=parts["config"],
        model=start.architecture,
        checkpoint=str(start.checkpoint) if start.checkpoint else None,
        checkpoint_sha256=parts["checkpoint"],
        seed=parts["seed"],
        key=content_key(parts),
    )
    timed = _times(stage) or any(before[parent].timed for parent in parents.values())
    return Planned(job, stage, parents, parts, start.begins_with, start.place, timed)


def _line(parent: str | None, before: Mapping[str, Planned]) -> Iterator[Stage]:
    """The stages before one in its chain, the last first."""
    while parent is not None:
        yield before[parent].stage
        parent = before[parent].parents.get("model")


@dataclass(frozen=True)
class _Start:
    """The starting point of a stage: an architecture and a checkpoint, or its parent's result."""

    begins_with: torch.nn.Module
    place: str
    architecture: dict[str, Any] | None = None
    checkpoint: Path | None = None
    parents: Mapping[str, str] = field(default_factory=dict)


def _start_of(name: str, stage: Stage, recipe: _Recipe, before: Mapping[str, Planned]) -> _Start:
    own = _own_model(name, stage, recipe.stages, recipe.model)
    if own is None:
        parent = list(before)[-1]
        begun = before[parent]
        return _Start(begun.begins_with, begun.model_place, parents={"model": parent})
    given = recipe.stages[name].get("model")
    stage_model = f"recipe.stages.{name}.model"
    where = f"model.{STUDENT}" if given == STUDENT else stage_model if given else "model"
    architecture, checkpoint, begins_with = checked_architecture(own, recipe.data, where)
    return _Start(begins_with, where, architecture, checkpoint)


def _key_parts(
    name: str, stage: Stage, recipe: _Recipe, start: _Start, parents: dict[str, str]
) -> dict[str, Any]:
    """Everything a stage's result depends on; `parents` maps roles to keys."""
    config = _own_options(recipe.stages[name])
    weighs = _times(stage) or bool(getattr(stage, "weighs_files", False))
    targets = {*_ALWAYS_RUNS, *own_targets([config, start.architecture, recipe.dataset])}
    targets |= {_EXPORTER} if weighs else set()
    targets |= {_TIMER} if _times(stage) else set()
    libraries = (
        *_FIT_LIBRARIES,
        *(_EXPORT_LIBRARIES if weighs else ()),
        *getattr(start.begins_with, "libraries", ()),
    )
    return {
        "schema": SCHEMA,
        "kind": "stage",
        "stage": type(stage).__name__,
        "config": config,
        "parents": parents,
        "model": start.architecture,
        "checkpoint": file_digest(start.checkpoint) if start.checkpoint else None,
        "data": recipe.data_identity,
        "code": source_digest(sorted(targets)),
        "environment": versions(libraries) | library_versions(sorted(_of_the_user(targets))),
        "seed": stage_seed(recipe.seed, name),
        "runtime": asdict(recipe.runtime),
        **({"opset": recipe.opset} if weighs else {}),
        **({"machine": machine()} if _times(stage) else {}),
    }


def _of_the_user(targets: Iterable[str]) -> Iterator[str]:
    ours = __name__.partition(".")[0]
    return (target for target in targets if target.partition(".")[0] != ours)


def _times(stage: Stage) -> bool:
    """Whether the result of a stage depends on measured latency."""
    return bool(getattr(stage, "times_files", False))


def _ask(stage: Stage, check: str, where: str, *given: Any) -> None:
    """Call the optional method `check` of a stage, which may reject its inputs."""
    method = getattr(stage, check, None)
    if method is not None:
        try:
            method(*given)
        except LimitError as error:
            raise LimitError(f"{where}: {error}", error.excess) from None
        except UserError as error:
            raise UserError(f"{where}: {error}") from error.__cause__
        except RuntimeError as error:  # torch.cond compiles what it calls
            if not type(error).__module__.startswith("torch._dynamo"):
                raise
            raise UserError(
                f"{where}: the calls of the model cannot be followed: {reason(error)}"
            ) from error


def stage_seed(seed: int, name: str) -> int:
    """The seed of a stage, derived from the run's seed and the stage's name alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:6], "big")
