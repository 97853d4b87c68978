"""Trackers, the choices of the config group `tracking`: a local MLflow, a server, or none."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from compressbench.core.types import Step
from compressbench.core.validation import check_label, check_path
from compressbench.results.sweep import Sweep
from compressbench.tracking.local_database import sqlite_uri
from compressbench.tracking.mlflow_client import TrackingStore, tracking_store
from compressbench.tracking.records import Opening
from compressbench.tracking.run_session import Logged, Tracked
from compressbench.tracking.sweep_session import LoggedSweep, LoggedTrial


class Session(Protocol):
    """The logging of one run; `run` is the value of its tag `compressbench.run`, or ""."""

    @property
    def run(self) -> str: ...

    def log_step(self, step: Step) -> None:
        """Log the figures and the training history of a finished stage."""
        ...

    def finish(self, status: str, note: str, files: Sequence[Path] = ()) -> Tracked:
        """End the run. `status` is FINISHED, FAILED or KILLED, `note` is Markdown."""
        ...


class SweepSession(Protocol):
    """The logging of a sweep as a whole; its trials have sessions of their own."""

    def changed(self, sweep: Sweep) -> None:
        """Log that a trial has started or ended. Takes milliseconds, even if the server is down."""
        ...

    def finish(self, status: str, sweep: Sweep, files: Sequence[Path] = ()) -> Tracked:
        """End the sweep with FINISHED, FAILED or KILLED. Waits a few seconds at most."""
        ...


class Tracker(Protocol):
    """Starts the logging of a run, of a sweep, or of a trial in a sweep.

    `sweep` is a unique identifier; starting with the same identifier again, on any machine,
    continues the same MLflow run. The trials of a sweep are in `folder/trials/` and are logged by
    the process that `open_sweep` starts.
    """

    def start(
        self, folder: Path, name: str, tags: Mapping[str, str], config: Mapping[str, Any]
    ) -> Session:
        """Start logging a single run; its outbox is in `folder`, `config` becomes its params."""
        ...

    def start_trial(
        self,
        folder: Path,
        name: str,
        tags: Mapping[str, str],
        config: Mapping[str, Any],
        sweep: str,
    ) -> Session:
        """Start or resume logging a trial of `sweep`."""
        ...

    def open_sweep(
        self,
        folder: Path,
        name: str,
        tags: Mapping[str, str],
        config: Mapping[str, Any],
        sweep: str,
    ) -> SweepSession:
        """Start or resume logging a sweep as a whole."""
        ...


class _MLflow(ABC):
    """Base of the trackers that log to MLflow."""

    experiment: str

    @abstractmethod
    def _store(self) -> TrackingStore: ...

    def _opening(self, name: str, tags: Mapping[str, str], config: Mapping[str, Any]) -> Opening:
        return Opening(self._store(), self.experiment, name, tags, config)

    def start(
        self, folder: Path, name: str, tags: Mapping[str, str], config: Mapping[str, Any]
    ) -> Session:
        return Logged.start(self._opening(name, tags, config), folder)

    def start_trial(
        self,
        folder: Path,
        name: str,
        tags: Mapping[str, str],
        config: Mapping[str, Any],
        sweep: str,
    ) -> Session:
        return LoggedTrial.start(self._opening(name, tags, config), folder, sweep)

    def open_sweep(
        self,
        folder: Path,
        name: str,
        tags: Mapping[str, str],
        config: Mapping[str, Any],
        sweep: str,
    ) -> SweepSession:
        return LoggedSweep.start(self._opening(name, tags, config), folder, sweep)


@dataclass(frozen=True)
class Local(_MLflow):
    """Logs to a local MLflow database, `mlflow.db` and `mlartifacts/` in `folder`."""

    folder: str
    experiment: str = "compressbench"

    def __post_init__(self) -> None:
        check_path("folder", self.folder)
        check_label("experiment", self.experiment)

    def _store(self) -> TrackingStore:
        home = Path(self.folder).resolve()
        return TrackingStore(sqlite_uri(home / "mlflow.db"), (home / "mlartifacts").as_uri())


@dataclass(frozen=True)
class Server(_MLflow):
    """Logs to the MLflow server at `url`, by default that of MLFLOW_TRACKING_URI."""

    url: str | None = None
    experiment: str = "compressbench"

    def __post_init__(self) -> None:
        check_label("experiment", self.experiment)
        self._store()

    def _store(self) -> TrackingStore:
        return tracking_store(self.url or os.environ.get("MLFLOW_TRACKING_URI", ""))


@dataclass(frozen=True)
class NoTracking:
    """Logs nothing; the run folder has everything."""

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
        config: Mapping[str, Any],
        sweep: str,
    ) -> SweepSession:
        return UnloggedSweep()


@dataclass(frozen=True)
class Unlogged:
    """The session of a run without tracking."""

    run: str = ""

    def log_step(self, step: Step) -> None:
        pass

    def finish(self, status: str, note: str, files: Sequence[Path] = ()) -> Tracked:
        return Tracked()


@dataclass(frozen=True)
class UnloggedSweep:
    """The session of a sweep without tracking."""

    def changed(self, sweep: Sweep) -> None:
        pass

    def finish(self, status: str, sweep: Sweep, files: Sequence[Path] = ()) -> Tracked:
        return Tracked()
