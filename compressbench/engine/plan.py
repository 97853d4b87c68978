"""A recipe laid out before it runs: stages built and checked, parents named, keys computed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from compressbench.config.instantiate import instantiate, own_targets
from compressbench.core.errors import UserError
from compressbench.core.nearest import nearest
from compressbench.core.types import Data, DataSpec, Runtime, Stage
from compressbench.engine.environment import machine
from compressbench.engine.model_config import STUDENT, check_domain, options_of, student_of
from compressbench.engine.order import check_order
from compressbench.engine.stage_job import Job, sha256_of
from compressbench.export.opsets import NEWEST
from compressbench.models.checkpoint import load_checkpoint_
from compressbench.store.keys import content_key
from compressbench.store.sources import source_digest, versions

SCHEMA = 1
_FIT_LIBRARIES = ("torch", "pytorch-lightning", "torch-pruning")
_EXPORTER = "compressbench.export.onnx.export_onnx"
_TIMER = "compressbench.measure.latency.measure_latency"
_EXPORT_LIBRARIES = ("onnx", "onnxscript", "onnx-ir", "onnxruntime", "scipy")
_ALWAYS_RUNS = ("compressbench.engine.stage_job.execute",)


@dataclass(frozen=True)
class Planned:
    """One stage of a plan: what its processes need, where it comes from, what its key is made of.

    `parents` maps roles ("model", "teacher") to names of earlier stages.
    """

    job: Job
    stage: Stage
    parents: dict[str, str]
    parts: dict[str, Any]
    begins_with: torch.nn.Module  # the architecture at the start of its line, untrained
    timed: bool = False  # it, or what it comes from, depends on measured times

    @property
    def name(self) -> str:
        return self.job.name

    @property
    def key(self) -> str:
        return self.job.key

    @property
    def kind(self) -> str:
        return type(self.stage).__name__.lower()


def make_plan(
    stages: Mapping[str, Any],
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
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed must be an integer of at least 0, got {seed!r}")
    built = {name: _build_stage(name, config) for name, config in stages.items()}
    fresh = frozenset(n for n, s in built.items() if _own_model(n, s, stages, model) is not None)
    check_order(built, fresh)
    _check_lines(built, fresh)
    planned: dict[str, Planned] = {}
    for name, stage in built.items():
        planned[name] = _plan_stage(
            name, stage, stages, model, dataset, data, runtime, seed, planned, opset
        )
    return list(planned.values())


def _build_stage(name: str, config: Any) -> Stage:
    where = f"recipe.stages.{name}"
    if not isinstance(config, Mapping) or "_target_" not in config:
        raise UserError(f"{where} has no _target_: it is no stage")
    stage = instantiate(_own_options(config), where)
    if not isinstance(stage, Stage):
        raise UserError(f"{where}._target_={config['_target_']} is no stage")
    return stage


def _check_lines(stages: Mapping[str, Stage], fresh: frozenset[str]) -> None:
    """Let each stage look at those that its model went through."""
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


def _plan_stage(
    name: str,
    stage: Stage,
    stages: Mapping[str, Any],
    model: Mapping[str, Any],
    dataset: Mapping[str, Any],
    data: Data,
    runtime: Runtime,
    seed: int,
    before: Mapping[str, Planned],
    opset: int,
) -> Planned:
    where = f"recipe.stages.{name}"
    own = _own_model(name, stage, stages, model)
    architecture = checkpoint = None
    parents: dict[str, str] = {}
    if own is None:
        parents["model"] = list(before)[-1]
        begins_with = before[parents["model"]].begins_with
    else:
        given = stages[name].get("model")
        at = f"model.{STUDENT}" if given == STUDENT else f"{where}.model" if given else "model"
        architecture, checkpoint, begins_with = _architecture(own, data, at)
    _ask(stage, "check_model", where, begins_with, data.spec)
    teachers = _teachers(name, stages[name], before, where)
    parents |= teachers
    if teachers:
        taught_by = [before[teacher].begins_with for teacher in teachers.values()]
        _ask(stage, "check_teachers", where, begins_with, taught_by, data.spec)
    config = _own_options(stages[name])
    times = bool(getattr(stage, "times_files", False))
    weighs = times or bool(getattr(stage, "weighs_files", False))
    exporters = {_EXPORTER} if weighs else set()
    exporters |= {_TIMER} if times else set()
    targets = {*_ALWAYS_RUNS, *own_targets([config, architecture, dataset])}
    parts: dict[str, Any] = {
        "schema": SCHEMA,
        "kind": "stage",
        "stage": type(stage).__name__,
        "config": config,
        "parents": {role: before[parent].key for role, parent in parents.items()},
        "model": architecture,
        "checkpoint": sha256_of(checkpoint) if checkpoint else None,
        "data": data.manifest(),
        "code": source_digest(sorted(targets | exporters)),
        "environment": versions(
            _FIT_LIBRARIES
            + (_EXPORT_LIBRARIES if weighs else ())
            + tuple(getattr(begins_with, "libraries", ()))
        ),
        "seed": stage_seed(seed, name),
        "runtime": asdict(runtime),
        **({"opset": opset} if weighs else {}),
        **({"machine": machine()} if times else {}),
    }
    job = Job(
        name,
        config,
        architecture,
        str(checkpoint) if checkpoint else None,
        parts["checkpoint"],
        parts["seed"],
        content_key(parts),
    )
    timed = times or any(before[parent].timed for parent in parents.values())
    return Planned(job, stage, parents, parts, begins_with, timed)


def _ask(stage: Stage, check: str, where: str, *given: Any) -> None:
    """Let a stage that has the method `check` refuse what it is to begin with."""
    method = getattr(stage, check, None)
    if method is not None:
        try:
            method(*given)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None


def _architecture(
    own: Mapping[str, Any], data: Data, where: str
) -> tuple[dict[str, Any], Path | None, torch.nn.Module]:
    if not isinstance(own, Mapping):
        raise UserError(f"{where}={own} is no model: choose one of the group, model@{where}={own}")
    spec = data.spec
    check_domain(own, spec, where)
    config = {
        "input_shape": list(spec.input_shape),
        "num_classes": spec.num_classes,
        **({"vocabulary": spec.tokens.vocabulary, "pad": spec.tokens.pad} if spec.tokens else {}),
        **options_of(own),
    }
    if config["num_classes"] != spec.num_classes:
        raise UserError(
            f"{where}.num_classes={config['num_classes']}, but dataset {spec.name} has "
            f"{spec.num_classes} classes: teacher, student and dataset must agree"
        )
    path = None if own.get("checkpoint") is None else Path(str(own["checkpoint"])).expanduser()
    if path is not None and not path.is_file():
        raise UserError(f"{where}.checkpoint={path}: there is no such file")
    return config, path, _try_model(config, path, spec, where)


def _try_model(
    config: Mapping[str, Any], checkpoint: Path | None, spec: DataSpec, where: str
) -> torch.nn.Module:
    """Build a model and run it on two blank samples: what cannot work shows before any training."""
    with torch.random.fork_rng(devices=()):
        model = instantiate(config, where)
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{where}._target_={config['_target_']} is no torch.nn.Module")
    if checkpoint is not None:
        load_checkpoint_(model, checkpoint)
    inputs = spec.blank(2)
    try:
        with torch.no_grad():
            logits = model.eval()(inputs)
    except (RuntimeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"{where} fails on inputs {list(inputs.shape)}: {first}") from error
    if tuple(getattr(logits, "shape", ())) != (2, spec.num_classes):
        raise UserError(
            f"{where} maps {list(inputs.shape)} to {list(getattr(logits, 'shape', ()))}, but "
            f"dataset {spec.name} has {spec.num_classes} classes: [2, {spec.num_classes}] expected"
        )
    return model


def _teachers(
    name: str, config: Mapping[str, Any], before: Mapping[str, Planned], where: str
) -> dict[str, str]:
    """Role ("teacher", "teacher.1", ...) -> the stage that `teacher` names, or that it lists."""
    given = config.get("teacher")
    if given is None:
        if config.get("loss") is not None and "teacher" in config:
            raise UserError(f"{where}.teacher is required: the name of an earlier stage")
        return {}
    if "loss" in config and config["loss"] is None:
        raise UserError(f"{where}.teacher={given} has no use without a loss: set both or neither")
    names = list(given) if isinstance(given, (list, tuple)) else [given]
    if not names or len(set(map(str, names))) < len(names):
        raise UserError(f"{where}.teacher={given} must name stages, each once")
    for teacher in names:
        if teacher not in before:
            choices = nearest(str(teacher), before)
            raise UserError(f"{where}.teacher={teacher} is no stage before {name}{choices}")
    return {f"teacher.{i}" if i else "teacher": str(n) for i, n in enumerate(names)}


def stage_seed(seed: int, name: str) -> int:
    """The seed of a stage: of the run's seed and the stage's name, of nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:6], "big")
