"""Logs a sweep and its trials: supervisors and workers append to outboxes.

One process per sweep (`sweep_drain.work`) drains the outboxes of the sweep and of all its trials.
Every supervisor starts such a process; a lock in the folder ensures that only one drains.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressbench.core.errors import UserError
from compressbench.core.types import Step
from compressbench.results import front as fronts
from compressbench.results.sweep import Sweep, Trial
from compressbench.results.sweep_file import write_sweep
from compressbench.tracking.mlflow_charts import view_key
from compressbench.tracking.mlflow_client import (
    FOLDER_TAG,
    KIND_TAG,
    RUN_TAG,
    SWEEP_TAG,
    TrackingStore,
    chart_link,
    open_commands,
)
from compressbench.tracking.outbox import Outbox
from compressbench.tracking.outbox_lines import Operation
from compressbench.tracking.records import Opening, end_operations, now, step_operation
from compressbench.tracking.run_session import END_SECONDS, Tracked, damage, start_worker, unlogged

FRONT_SECONDS = 10.0  # minimum time between updates of table, chart and tags
RESTART_SECONDS = 30.0  # minimum time between starts of the draining process, which cost CPU time


def _check_owner(outbox: Outbox, operations: Sequence[Operation], sweep: str) -> None:
    """Raise UserError if the folder belongs to another sweep, whose runs would be mixed up."""
    if not re.fullmatch(r"[\w.\-]+", sweep):
        raise ValueError(f"a sweep's tag has letters, digits, '.', '-' and '_', got {sweep!r}")
    for operation in operations:
        if operation["do"] == "start" and operation["tags"].get(SWEEP_TAG) != sweep:
            other = operation["tags"].get(SWEEP_TAG, "a single run")
            raise UserError(f"{outbox.folder} holds the records of {other}, not of {sweep}")


@dataclass(frozen=True)
class LoggedTrial:
    """The session of one trial, which appends to the outbox in the trial's folder.

    If another worker takes over the trial, it continues the same run: stages that are already in
    the outbox are not logged again.
    """

    outbox: Outbox
    run: str
    known: set[int]  # indices of the stages in the outbox

    @classmethod
    def start(cls, opening: Opening, folder: Path, sweep: str) -> LoggedTrial:
        """Open the outbox in `folder`. Raises UserError if it belongs to another sweep."""
        outbox = Outbox(folder.resolve(), shared=True)
        run = f"{sweep}/{outbox.folder.name}"
        before = outbox.read()
        _check_owner(outbox, before, sweep)
        known = {o["stage"] for o in before if o["do"] == "metrics"}
        tags = {SWEEP_TAG: sweep, RUN_TAG: run, FOLDER_TAG: str(outbox.folder)}
        outbox.append(opening.operation("trial", tags))
        return cls(outbox, run, known)

    def log_step(self, step: Step) -> None:
        if step.index not in self.known:
            self.outbox.append(step_operation(step))
            self.known.add(step.index)

    def finish(self, status: str, note: str, files: Sequence[Path] = ()) -> Tracked:
        """Append the end of the trial; the draining process of the sweep logs it later."""
        end = end_operations(status, self.outbox.folder, files)
        try:
            self.outbox.append({"do": "note", "text": note}, *end)
        except UserError as error:
            return Tracked(problem=f"the end of the trial is not logged: {error}")
        return Tracked()


@dataclass
class LoggedSweep:
    """The session of a sweep in one supervisor; several supervisors may share a sweep."""

    outbox: Outbox
    store: TrackingStore
    sweep: str
    worker: subprocess.Popen[bytes]
    offset: int = 0  # byte offset up to which the outbox was read
    step: int = 0  # number of finished trials whose hypervolume is in the outbox
    shown: tuple[Any, ...] = ()  # the last front that was appended
    shown_at: float = float("-inf")
    started_at: float = field(default_factory=time.monotonic)  # start time of the worker

    @classmethod
    def start(cls, opening: Opening, folder: Path, sweep: str) -> LoggedSweep:
        """Open the outbox in `folder` and start the process that drains it."""
        folder.mkdir(parents=True, exist_ok=True)
        outbox = Outbox(folder.resolve(), shared=True)
        _check_owner(outbox, outbox.read(), sweep)
        tags = {SWEEP_TAG: sweep, RUN_TAG: sweep, FOLDER_TAG: str(outbox.folder)}
        outbox.append(opening.operation("sweep", {**tags, KIND_TAG: "sweep"}))
        return cls(outbox, opening.store, sweep, _start_drain(outbox, opening.store))

    def changed(self, sweep: Sweep) -> None:
        """Append the hypervolume after each newly finished trial and, from time to time, the front.

        Restarts the draining process if it has ended.
        """
        if time.monotonic() - self.started_at >= RESTART_SECONDS:
            self._restart()
        self._append_steps(sweep)
        if time.monotonic() - self.shown_at >= FRONT_SECONDS:
            self._append_front(sweep)

    def _restart(self) -> None:
        if self.worker.poll() is not None:
            self.worker, self.started_at = _start_drain(self.outbox, self.store), time.monotonic()

    def _append_steps(self, sweep: Sweep) -> None:
        done = fronts.finished(sweep)
        self._catch_up()
        first = self.step
        metrics = [
            ["front/hypervolume", volume, _ended(done[step - 1]), step]
            for step in range(first + 1, len(done) + 1)
            if (volume := fronts.hypervolume(sweep, done[:step])) is not None
        ]
        metrics += [
            [f"trials/{state}", states.count(state), _ended(done[step - 1]), step]
            for step in range(first + 1, len(done) + 1)
            for state in ("infeasible", "failed")
            if (states := [trial.state for trial in done[:step]])[-1] == state
        ]
        if metrics:
            self.outbox.append({"do": "metrics", "metrics": metrics})

    def _catch_up(self) -> None:
        """Read what other supervisors, or an earlier start of this sweep, have appended."""
        operations, self.offset = self.outbox.read_from(self.offset)
        steps = [m[3] for o in operations if o["do"] == "metrics" for m in o["metrics"]]
        self.step = max([self.step, *steps])

    def _append_front(self, sweep: Sweep) -> None:
        front = fronts.members(sweep)
        noisy = fronts.within_noise(sweep, front)
        shown = tuple((t.number, t.run, t.number in noisy, len(t.repeats)) for t in front)
        if shown != self.shown:
            write_sweep(sweep, self.outbox.folder)  # input of the chart and the table
            self.outbox.append({"do": "front", "members": [t.run for t in front if t.run]})
            self.shown, self.shown_at = shown, time.monotonic()

    def finish(self, status: str, sweep: Sweep, files: Sequence[Path] = ()) -> Tracked:
        """Append the end of the sweep and wait at most `END_SECONDS` until it is logged.

        If logging takes longer, the draining process goes on alone. `files` are files or folders
        inside the folder of the sweep.
        """
        end = end_operations(status, self.outbox.folder, files)
        try:
            self.changed(sweep)
            self.shown = ()  # append the front in any case: the chart shows all trials
            self._append_front(sweep)
            self.outbox.append(*end)
        except UserError as error:
            return Tracked(problem=f"the end of the sweep is not logged: {error}")
        self._restart()
        with suppress(subprocess.TimeoutExpired):
            self.worker.communicate(b"\n", timeout=END_SECONDS)
        return self._ending()

    def _ending(self) -> Tracked:
        folder, state = self.outbox.folder, self.outbox.state(self.store.shown)
        command, link, charts = "", "", ""
        if "run" in state:
            command, link = open_commands(self.store, state["experiment"], state["run"])
            charts = chart_link(self.store, state["experiment"], view_key(self.sweep))
        if self.worker.returncode == 0:
            said = [state.get("notice"), damage(self.outbox)]
            return Tracked(command, link, "; ".join(filter(None, said)), charts)
        alive = self.worker.returncode is None
        late = "is still being written by a background process" if alive else "is not up to date"
        problem = unlogged(
            self.store, folder, state.get("problem") or late, "the rest" if alive else "it"
        )
        return Tracked(command, link, problem, charts)


def _start_drain(outbox: Outbox, store: TrackingStore) -> subprocess.Popen[bytes]:
    return start_worker(outbox.folder, store, "sweep_drain")


def _ended(trial: Trial) -> int:
    """The end of a trial in milliseconds; equal for all supervisors, so MLflow keeps one metric."""
    return round(1000 * trial.ended) if trial.ended else now()
