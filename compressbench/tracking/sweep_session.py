"""The logging of a sweep and of its trials, as those who work see it: they append, and go on.

One process per sweep (`sweep_tracking.work`) drains the outboxes of the sweep and of all its
trials. Whoever opens the sweep starts one; a lock in the folder says which of them drains.
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
from compressbench.tracking.outbox import Operation, Outbox
from compressbench.tracking.records import Opening, end_operations, now, step_operation
from compressbench.tracking.run_session import END_SECONDS, Tracked, start_worker, unlogged

FRONT_SECONDS = 10.0  # table, picture and tags are not renewed more often
RESTART_SECONDS = 30.0  # starting the process that drains costs seconds of CPU


def _check_owner(outbox: Outbox, operations: Sequence[Operation], sweep: str) -> None:
    """A folder is one sweep's: under another one's tag its runs would mix."""
    if not re.fullmatch(r"[\w.\-]+", sweep):
        raise ValueError(f"a sweep's tag has letters, digits, '.', '-' and '_', got {sweep!r}")
    for operation in operations:
        if operation["do"] == "start" and operation["tags"].get(SWEEP_TAG) != sweep:
            other = operation["tags"].get(SWEEP_TAG, "a single run")
            raise UserError(f"{outbox.folder} holds the records of {other}, not of {sweep}")


@dataclass(frozen=True)
class LoggedTrial:
    """The session of one trial: it appends to the outbox of the trial's folder.

    A trial that another worker adopts goes on in the same run: stages that are in the outbox
    already are not logged again.
    """

    outbox: Outbox
    run: str
    known: set[int]  # stages

    @classmethod
    def start(cls, opening: Opening, folder: Path, sweep: str) -> LoggedTrial:
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
        """Append the end; the sweep's process logs it when it comes to it."""
        end = end_operations(status, self.outbox.folder, files)
        self.outbox.append({"do": "note", "text": note}, *end)
        return Tracked()


@dataclass
class LoggedSweep:
    """The session of a sweep in one supervisor. Several may have the same sweep open."""

    outbox: Outbox
    store: TrackingStore
    sweep: str
    worker: subprocess.Popen[bytes]
    offset: int = 0  # of the outbox, up to which `step` was read
    step: int = 0  # finished trials whose hypervolume is in the outbox
    shown: tuple[Any, ...] = ()  # the front that was handed over last
    shown_at: float = float("-inf")
    started_at: float = field(default_factory=time.monotonic)  # of the worker

    @classmethod
    def start(cls, opening: Opening, folder: Path, sweep: str) -> LoggedSweep:
        folder.mkdir(parents=True, exist_ok=True)
        outbox = Outbox(folder.resolve(), shared=True)
        _check_owner(outbox, outbox.read(), sweep)
        tags = {SWEEP_TAG: sweep, RUN_TAG: sweep, FOLDER_TAG: str(outbox.folder)}
        outbox.append(opening.operation("sweep", {**tags, KIND_TAG: "sweep"}))
        return cls(outbox, opening.store, sweep, _start_drain(outbox, opening.store))

    def changed(self, sweep: Sweep) -> None:
        """Append what is new: the hypervolume after each finished trial, and at times the front.

        Each is in the outbox once, whoever appends it; the drain is started again if it died.
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
        if metrics:
            self.outbox.append({"do": "metrics", "metrics": metrics})

    def _catch_up(self) -> None:
        """Read what others, or an earlier start of this sweep, have appended."""
        operations, self.offset = self.outbox.read_from(self.offset)
        steps = [m[3] for o in operations if o["do"] == "metrics" for m in o["metrics"]]
        self.step = max([self.step, *steps])

    def _append_front(self, sweep: Sweep) -> None:
        front = fronts.members(sweep)
        noisy = fronts.within_noise(sweep, front)
        shown = tuple((t.number, t.run, t.number in noisy, len(t.repeats)) for t in front)
        if shown != self.shown:
            write_sweep(sweep, self.outbox.folder)  # the picture and the table are made from it
            self.outbox.append({"do": "front", "members": [t.run for t in front if t.run]})
            self.shown, self.shown_at = shown, time.monotonic()

    def finish(self, status: str, sweep: Sweep, files: Sequence[Path] = ()) -> Tracked:
        """Hand over the rest and wait for it, at most `END_SECONDS`; then the drain goes on alone.

        `files` are files or folders inside the sweep's folder.
        """
        end = end_operations(status, self.outbox.folder, files)
        self.changed(sweep)
        self.shown = ()  # the picture shows every trial, not only the front
        self._append_front(sweep)
        self.outbox.append(*end)
        self._restart()
        with suppress(subprocess.TimeoutExpired):  # late: it goes on alone until all is logged
            self.worker.communicate(b"\n", timeout=END_SECONDS)
        return self._ending()

    def _ending(self) -> Tracked:
        folder, state = self.outbox.folder, self.outbox.state(self.store.shown)
        command, link, charts = "", "", ""
        if "run" in state:
            command, link = open_commands(self.store, state["experiment"], state["run"])
            charts = chart_link(self.store, state["experiment"], view_key(self.sweep))
        if self.worker.returncode == 0:
            return Tracked(command, link, "", charts)
        alive = self.worker.returncode is None
        late = "is still being written, by a process of its own" if alive else "is not up to date"
        problem = unlogged(
            self.store, folder, state.get("problem") or late, "the rest" if alive else "it"
        )
        return Tracked(command, link, problem, charts)


def _start_drain(outbox: Outbox, store: TrackingStore) -> subprocess.Popen[bytes]:
    return start_worker(outbox.folder, store, "sweep_drain")


def _ended(trial: Trial) -> int:
    """The same for all who log it, so that MLflow keeps one of several."""
    return round(1000 * trial.ended) if trial.ended else now()
