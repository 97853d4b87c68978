"""Where a run is logged: trackers for the config, and the session of one run.

The run appends what it wants logged to the outbox in its folder. A helper process drains that
into MLflow, so neither the seconds of importing MLflow nor a dead server hold the run up.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from compressbench.core.redact import redact
from compressbench.core.types import Step
from compressbench.results.sweep import Sweep
from compressbench.tracking.mlflow_client import (
    RUN_TAG,
    TrackingStore,
    open_commands,
    tracking_store,
)
from compressbench.tracking.outbox import LOG, Outbox
from compressbench.tracking.records import flatten, now, step_operation
from compressbench.tracking.sweep_session import (
    END_SECONDS,
    LoggedSweep,
    LoggedTrial,
    Tracked,
    start_worker,
)


class Session(Protocol):
    """The logging of one run. `run` is the value of its tag `compressbench.run`, "" without."""

    @property
    def run(self) -> str: ...

    def log_step(self, step: Step) -> None: ...

    def finish(self, status: str, note: str, files: Sequence[Path]) -> Tracked:
        """Close the run. `status` is FINISHED, FAILED or KILLED; `note` is Markdown."""
        ...


class SweepSession(Protocol):
    """The logging of a sweep as a whole; its trials have sessions of their own."""

    def changed(self, sweep: Sweep) -> None:
        """Say that a trial began or ended. Costs milliseconds, whatever the server does."""
        ...

    def finish(self, status: str, sweep: Sweep, files: Sequence[Path] = ()) -> Tracked:
        """The end of this supervisor: FINISHED, FAILED or KILLED. Waits a few seconds at most."""
        ...


class Tracker(Protocol):
    """Opens the logging of a run, of a sweep, of a trial in a sweep.

    `sweep` is a name that no other sweep has; whoever gives it again, on any machine, goes on with
    the same run of MLflow. A sweep has its trials in `folder/trials/`; they log nothing themselves,
    the process that `open_sweep` starts does.
    """

    def start(
        self, folder: Path, name: str, tags: Mapping[str, str], config: Mapping[str, Any]
    ) -> Session: ...

    def start_trial(
        self,
        folder: Path,
        name: str,
        tags: Mapping[str, str],
        config: Mapping[str, Any],
        sweep: str,
    ) -> Session: ...

    def open_sweep(
        self,
        folder: Path,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        sweep: str,
    ) -> SweepSession: ...


@dataclass(frozen=True)
class Local:
    """`mlflow.db` and `mlartifacts/` in `folder`."""

    folder: str
    experiment: str = "compressbench"

    def start(
        self, folder: Path, name: str, tags: Mapping[str, str], config: Mapping[str, Any]
    ) -> Session:
        return _start(*self._place(), folder, name, tags, config)

    def start_trial(
        self,
        folder: Path,
        name: str,
        tags: Mapping[str, str],
        config: Mapping[str, Any],
        sweep: str,
    ) -> Session:
        return LoggedTrial.start(*self._place(), folder, name, tags, config, sweep)

    def open_sweep(
        self,
        folder: Path,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        sweep: str,
    ) -> SweepSession:
        return LoggedSweep.start(*self._place(), folder, name, tags, params, sweep)

    def _place(self) -> tuple[TrackingStore, str]:
        home = Path(self.folder).resolve()
        store = TrackingStore(f"sqlite:///{home / 'mlflow.db'}", (home / "mlartifacts").as_uri())
        return store, self.experiment


@dataclass(frozen=True)
class Server:
    """An MLflow server at `url`; None takes the environment's MLFLOW_TRACKING_URI."""

    url: str | None = None
    experiment: str = "compressbench"

    def __post_init__(self) -> None:
        self._place()

    def _place(self) -> tuple[TrackingStore, str]:
        return tracking_store(
            self.url or os.environ.get("MLFLOW_TRACKING_URI", "")
        ), self.experiment

    def start(
        self, folder: Path, name: str, tags: Mapping[str, str], config: Mapping[str, Any]
    ) -> Session:
        return _start(*self._place(), folder, name, tags, config)

    def start_trial(
        self,
        folder: Path,
        name: str,
        tags: Mapping[str, str],
        config: Mapping[str, Any],
        sweep: str,
    ) -> Session:
        return LoggedTrial.start(*self._place(), folder, name, tags, config, sweep)

    def open_sweep(
        self,
        folder: Path,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        sweep: str,
    ) -> SweepSession:
        return LoggedSweep.start(*self._place(), folder, name, tags, params, sweep)


@dataclass(frozen=True)
class NoTracking:
    """Nothing is logged; the run folder has everything."""

    def start(
        self, folder: Path, name: str, tags: Mapping[str, str], config: Mapping[str, Any]
    ) -> Session:
        return Unlogged()

    def start_trial(
        self,
        folder: Path,
        name: str,
        tags: Mapping[str, str],
        config: Mapping[str, Any],
        sweep: str,
    ) -> Session:
        return Unlogged()

    def open_sweep(
        self,
        folder: Path,
        name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        sweep: str,
    ) -> SweepSession:
        return UnloggedSweep()


@dataclass(frozen=True)
class Unlogged:
    """The session of a run without tracking."""

    run: str = ""

    def log_step(self, step: Step) -> None:
        pass

    def finish(self, status: str, note: str, files: Sequence[Path]) -> Tracked:
        return Tracked()


@dataclass(frozen=True)
class UnloggedSweep:
    """The session of a sweep without tracking."""

    def changed(self, sweep: Sweep) -> None:
        pass

    def finish(self, status: str, sweep: Sweep, files: Sequence[Path] = ()) -> Tracked:
        return Tracked()


@dataclass(frozen=True)
class Logged:
    """The session of a run whose outbox a helper process drains."""

    outbox: Outbox
    store: TrackingStore
    worker: subprocess.Popen[bytes]
    run: str

    def log_step(self, step: Step) -> None:
        self.outbox.append(step_operation(step))

    def finish(self, status: str, note: str, files: Sequence[Path]) -> Tracked:
        """Hand over the rest and wait for it, at most `END_SECONDS`.

        `files` are files or folders inside the run folder.
        """
        if status not in ("FINISHED", "FAILED", "KILLED"):
            raise ValueError(f"status must be FINISHED, FAILED or KILLED, got {status!r}")
        paths = [str(f.resolve().relative_to(self.outbox.folder)) for f in files]
        self.outbox.append(
            {"do": "note", "text": note},
            {"do": "files", "paths": paths},
            {"do": "finish", "status": status, "time": now()},
        )
        _stop(self.worker, kill=self.store.is_server)
        return self._ending()

    def _ending(self) -> Tracked:
        folder, state = self.outbox.folder, self.outbox.state(self.store.shown)
        command, link = "", ""
        if "run" in state:
            command, link = open_commands(self.store, state["experiment"], state["run"])
        if state["done"] == len(self.outbox.read()):
            (folder / LOG).unlink()
            return Tracked(command, link)
        late = "is unreachable" if self.store.is_server else "is still being written"
        problem = (
            f"tracking {'server ' * self.store.is_server}{self.store.shown} "
            f"{state.get('problem') or late}; everything is in {folder}; "
            f"`compressbench sync {shlex.quote(str(folder))}` logs it later"
        )
        return Tracked(command, link, problem)


def _start(
    store: TrackingStore,
    experiment: str,
    folder: Path,
    name: str,
    tags: Mapping[str, str],
    config: Mapping[str, Any],
) -> Logged:
    folder = folder.resolve()
    outbox, run = Outbox(folder), uuid.uuid4().hex
    outbox.append(
        {
            "do": "start",
            "target": store.shown,
            "artifacts": store.artifacts,
            "experiment": experiment,
            "name": name,
            "tags": {**tags, RUN_TAG: run},
            "params": flatten(redact(config)),
            "time": now(),
        }
    )
    return Logged(outbox, store, start_worker(folder, store, "mlflow_client"), run)


def _stop(worker: subprocess.Popen[bytes], kill: bool) -> None:
    """Ask the worker to log what is left, and wait; a late one goes on alone, or is killed."""
    try:
        worker.communicate(b"\n", timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        if kill:
            worker.kill()
            worker.wait()
