"""Runs one trial: composes its config and runs the recipe in its own folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from compressbench.config.boundary import allow_arguments
from compressbench.config.compose import compose_config
from compressbench.config.run_config import RunConfig
from compressbench.core.errors import CheckFailedError, LimitError, TransientError, UserError
from compressbench.core.memory import is_out_of_memory
from compressbench.core.types import Step
from compressbench.engine.executor import run
from compressbench.engine.model_trial import try_models
from compressbench.engine.prepare import prepare
from compressbench.engine.run import reported, run_stages
from compressbench.engine.run_folder import begin, tags
from compressbench.search.result import Kind, Result
from compressbench.search.spec import Spec

Stop = Callable[[Step], str]  # the reason to stop after a stage, "" to continue
LEAST_VIOLATION = 1e-6  # of an infeasible trial, so that it is above 0
SEED_STEP = 1  # the seed of repeat r is the recipe's plus r


def trial_config(spec: Spec, overrides: Sequence[str]) -> RunConfig:
    """The config of one trial, as `python run.py` with these overrides would compose it."""
    return RunConfig.of(compose_config([*spec.fixed, *overrides], spec.conf_folders))


def run_trial(
    spec: Spec,
    config: RunConfig,
    overrides: Sequence[str],
    *,
    name: str,
    folder: Path,
    stop: Stop,
    progress: Callable[[int, int, str], None],
) -> Result:
    """Run a recipe into `folder`, as a single run does, but without test data and pictures."""
    prepared = prepare(config).with_context(test=False, progress=progress)
    try_models(prepared.plan, prepared.context)
    command = ["python", "run.py", *allow_arguments(), *_shown(spec.fixed), *overrides]
    info = begin(prepared, folder, command)
    session = prepared.tracker.start_trial(folder, name, tags(prepared), config.as_dict(), spec.tag)
    with reported(info, session, pictures=False) as steps:
        reason = run_stages(prepared, steps, session, folder, after=stop)
    return _result(spec, steps, reason, session.run)


def _shown(fixed: Sequence[str]) -> list[str]:
    return [a for a in fixed if not a.startswith("search") and "@search." not in a]


def _result(spec: Spec, steps: Sequence[Step], reason: str, run_tag: str) -> Result:
    wanted = {o.name for o in spec.objectives} | {c.name for c in spec.constraints}
    rows = [
        {
            "name": step.name,
            "hit": step.hit,
            "seconds": round(step.seconds, 3),
            "figures": {k: v for k, v in step.measurement.figures.items() if k in wanted},
        }
        for step in steps
    ]
    figures = dict(steps[-1].measurement.figures)
    if reason:
        return Result("pruned", figures, stages=rows, reason=reason, run=run_tag)
    missing = [o.name for o in spec.objectives if o.name not in figures]
    if missing:
        return Result("failed", figures, stages=rows, kind="check", run=run_tag,
                      reason=f"{missing[0]} was not measured")  # fmt: skip
    baseline = dict(steps[0].measurement.figures)
    return Result("complete", figures, baseline, rows, run=run_tag)


def run_repeat(spec: Spec, overrides: Sequence[str], repeat: int) -> Result:
    """Run a member of the final front again, with another seed and with test data."""
    config = trial_config(spec, overrides)
    prepared = prepare(replace(config, seed=config.seed + repeat * SEED_STEP))
    steps = list(run(prepared.plan, prepared.context))
    first, last = (dict(step.measurement.figures) for step in (steps[0], steps[-1]))
    return Result("complete", last, first)


def failure(error: Exception) -> Result:
    """The result of a trial that raised an exception: infeasible if its settings were refused."""
    kind: Kind = "bug"
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    if is_out_of_memory(error):
        kind, text = "memory", text if "out of memory" in text else f"out of memory: {text}"
    elif isinstance(error, UserError):
        kind = "user"
    elif isinstance(error, CheckFailedError):
        kind = "check"
    else:
        text = f"{type(error).__name__}: {text}"
    if kind == "memory" or not _refused(error):
        return Result("failed", reason=text, kind=kind)
    excess = error.excess if isinstance(error, LimitError) else 1.0
    return Result("infeasible", reason=text, kind=kind, violation=max(excess, LEAST_VIOLATION))


def _refused(error: BaseException | None) -> bool:
    """Whether the settings are the reason, and not the machine (a full disk, a changed file)."""
    if isinstance(error, TransientError) or not isinstance(error, (UserError, CheckFailedError)):
        return False
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return error is None
