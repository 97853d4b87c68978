"""One trial: its settings -> a composed config -> a recipe run in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressbench.config.compose import compose_config
from compressbench.config.instantiate import allow_arguments, instantiate
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.types import Step
from compressbench.engine.executor import run
from compressbench.engine.run import begin, prepare, record, ship, tags
from compressbench.results.run_report import markdown
from compressbench.search.result import Kind, Result
from compressbench.search.spec import Spec
from compressbench.tracking.trackers import Tracker

Stop = Callable[[Step], str]  # why to stop after a stage, "" to go on
SEED_STEP = 1  # the seed of repeat r is the recipe's plus r


def trial_config(spec: Spec, overrides: Sequence[str]) -> dict[str, Any]:
    config = compose_config([*spec.fixed, *overrides], spec.conf_folders)
    config.pop("search")
    return config


def run_trial(
    spec: Spec,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    name: str,
    folder: Path,
    stop: Stop,
    progress: Callable[[int, int, str], None],
) -> Result:
    """Run a recipe into `folder`, as a single run does, but without test data and pictures."""
    plan, run_context = prepare(config)
    run_context = replace(run_context, test=False, progress=progress)
    command = ["python", "run.py", *allow_arguments(), *_shown(spec.fixed), *overrides]
    info = begin(config, folder, command, run_context.data)
    tracker: Tracker = instantiate(config["tracking"], "tracking")
    labels = tags(config, run_context.data)
    session = tracker.start_trial(folder, name, labels, config, spec.tag)
    steps: list[Step] = []
    status, reason = "failed", ""
    try:
        for step in run(plan, run_context):
            steps.append(step)
            session.log_step(step)
            reason = "" if step.is_last else stop(step)
            if reason:
                break
        if not reason:
            ship(steps[-1], run_context, folder)
        status = "finished"
    finally:
        report, files = record(info, steps, status)
        session.finish(status.upper(), markdown(report), files)
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
                      reason=f"{missing[0]} could not be taken")  # fmt: skip
    baseline = dict(steps[0].measurement.figures)
    return Result("complete", figures, baseline, rows, run=run_tag)


def run_repeat(spec: Spec, overrides: Sequence[str], repeat: int) -> Result:
    """A member of the final front once more, under another seed, with test data."""
    config = trial_config(spec, overrides)
    seed = config["seed"] + repeat * SEED_STEP
    plan, run_context = prepare({**config, "seed": seed})
    steps = list(run(plan, run_context))
    return Result("complete", dict(steps[-1].measurement.figures),
                  dict(steps[0].measurement.figures))  # fmt: skip


def failure(error: Exception) -> Result:
    """The result of a trial that raised."""
    kind: Kind = "bug"
    text = str(error).strip().partition("\n")[0] or type(error).__name__
    if isinstance(error, UserError):
        kind = "user"
    elif isinstance(error, MemoryError) or "out of memory" in text.lower():
        kind, text = "memory", f"out of memory: {text}"
    elif isinstance(error, CheckFailedError):
        kind = "check"
    else:
        text = f"{type(error).__name__}: {text}"
    return Result("failed", reason=text, kind=kind)
