"""One run of a recipe: prepare it, run its stages, ship the last file, report and track it.

The order of what happens between the command line and the file, one module each: `cli.main` and
`config.run_config` (a checked config), `prepare` and `plan` (stages and their keys), `executor`
(each stage from the store or run by `stage_job`, then exported and measured), `run_folder` (what is
left behind). A trial of a sweep goes the same way (`search.trial`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from compressbench.config.recipe_file import read_recipe, replay_command
from compressbench.config.run_config import RunConfig
from compressbench.core.errors import UserError
from compressbench.core.kill_points import reached
from compressbench.core.live_objects import live_types
from compressbench.core.types import Step
from compressbench.engine.environment import check_torchvision
from compressbench.engine.executor import run
from compressbench.engine.model_trial import try_models, try_passes
from compressbench.engine.plan_table import show_plan
from compressbench.engine.prepare import Prepared, prepare
from compressbench.engine.run_folder import (
    RECIPE_FILE,
    begin,
    record,
    remove_if_empty,
    ship,
    tags,
)
from compressbench.results.report_file import REPORT_FILE, read_report
from compressbench.results.run_plots import write_pages
from compressbench.results.run_report import (
    Report,
    RunInfo,
    build_report,
    headline,
    markdown,
    table,
)
from compressbench.results.terminal import Terminal, make_console, say
from compressbench.tracking.run_session import Tracked
from compressbench.tracking.trackers import Session

End = Callable[[str, Report, Tracked], None]  # called with status, report, tracking result


def run_recipe(config: RunConfig, folder: Path, command: list[str]) -> None:
    """Run a recipe, or show its plan. All output goes into `folder`.

    `command` is the command line that repeats the run. Raises UserError for what cannot work,
    CheckFailedError for a stage or file that fails a check.
    """
    try:
        prepared = prepare(config)
        if config.plan:
            try_passes(prepared.plan, prepared.context)
            show_plan(prepared.plan, prepared.context)
        else:
            _try(prepared)
    except UserError:
        remove_if_empty(folder)
        raise
    if config.plan:
        remove_if_empty(folder)
        return
    info = begin(prepared, folder, command)
    terminal = Terminal([p.name for p in prepared.plan], info.metric)
    reached("run.begun")
    session = prepared.tracker.start(folder, info.name, tags(prepared), config.as_dict())
    reached("run.tracking_begun")
    with reported(info, session, pictures=True, end=_last_lines(info)) as steps, terminal:
        run_stages(
            prepared.with_context(progress=terminal.progress),
            steps,
            session,
            folder,
            after=terminal.step,
        )


def _try(prepared: Prepared) -> None:
    """Raise UserError for a model that would fail later; nothing is tried if the store has all."""
    try_models(prepared.plan, replace(prepared.context, progress=_say_progress))
    if any(prepared.context.store.peek(planned.key) is None for planned in prepared.plan):
        check_torchvision()  # takes a second, which a run that trains spends in any case


def _say_progress(done: int, total: int, text: str) -> None:
    say(make_console(), text)


def run_stages(
    prepared: Prepared,
    steps: list[Step],
    session: Session,
    folder: Path,
    *,
    after: Callable[[Step], str | None],
) -> str:
    """Run a recipe's stages, adding each to `steps` and to the tracker; ship the last one's file.

    `after` sees each stage and may return why to stop there: then nothing is shipped, and the
    reason is returned ("" for a recipe that ran to its end).
    """
    for step in run(prepared.plan, prepared.context):
        steps.append(step)
        session.log_step(step)
        reached("run.stage_logged")
        reason = after(step)
        if reason and not step.is_last:
            return reason
    reached("run.before_shipping")
    ship(steps[-1], prepared.context, folder)
    reached("run.shipped")
    return ""


@contextmanager
def reported(
    info: RunInfo, session: Session, *, pictures: bool, end: End | None = None
) -> Iterator[list[Step]]:
    """Collect a run's steps; however it ends, write its report and close its tracking."""
    steps: list[Step] = []
    status = "killed"
    try:
        yield steps
        status = "finished"
    except Exception:
        status = "failed"
        raise
    finally:
        report, files = build_report(info, steps, status), []
        try:
            files = record(report, info)
            files += write_pages(report, info.folder) if steps and pictures else []
        finally:
            reached("run.before_tracking_ends")
            tracked = session.finish(status.upper(), markdown(report), files)
            reached("run.tracking_ended")
        if end is not None:
            end(status, report, tracked)


def _last_lines(info: RunInfo) -> End:
    """Returns the callback that prints the end of a run."""

    def show(status: str, report: Report, tracked: Tracked) -> None:
        terminal, folder = Terminal([], info.metric), info.folder
        if status != "finished":
            if tracked.problem:
                terminal.warn(tracked.problem)
            return
        terminal.summary(
            table(report), str(folder / "model.onnx"), tracked.command, tracked.link,
            tracked.problem,
        )  # fmt: skip
        say(terminal.console, headline(report))
        if not live_types():  # a recipe.yaml cannot hold a module or data of the caller
            say(terminal.console, f"run it again: {replay_command(folder / RECIPE_FILE)}")

    return show


def replay(path: Path) -> None:
    """Run a `recipe.yaml` again and print whether model.onnx has the same bytes as before."""
    config = RunConfig.of(read_recipe(path))
    stamp = datetime.now().strftime("%Y-%m-%d/%H-%M-%S-%f")
    folder = Path("runs").absolute() / stamp
    run_recipe(config, folder, ["compressbench", "replay", str(path)])
    if path.with_name(REPORT_FILE).is_file() and not config.plan:
        old, new = (
            read_report(where)["files"]["model.onnx"]["sha256"] for where in (path.parent, folder)
        )
        same = "the same bytes as" if old == new else "NOT the same bytes as"
        print(f"model.onnx has {same} the one beside {path}")
