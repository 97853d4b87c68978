"""Where runs and sweeps are logged: what a config's `tracking` may be."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from compressbench.core.types import Step
from compressbench.results.sweep import Sweep
from compressbench.tracking.mlflow_client import TrackingStore, tracking_store
from compressbench.tracking.records import Opening
from compressbench.tracking.run_session import Logged, Tracked
from compressbench.tracking.sweep_session import LoggedSweep, LoggedTrial


class Session(Protocol):
    """The logging of one run. `run` is the value of its tag `compressbench.run`, "" without."""

    @property
    def run(self) -> str: ...

    def log_step(self, step: Step) -> None: ...

    def finish(self, status: str, note: str, files: Sequence[Path] = ()) -> Tracked:
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
        config: Mapping[str, Any],
        sweep: str,
    ) -> SweepSession: ...


class _MLflow(ABC):
    """Logs to MLflow; the trackers below say where that is."""

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
    """`mlflow.db` and `mlartifacts/` in `folder`."""

    folder: str
    experiment: str = "compressbench"

    def _store(self) -> TrackingStore:
        home = Path(self.folder).resolve()
        return TrackingStore(f"sqlite:///{home / 'mlflow.db'}", (home / "mlartifacts").as_uri())


@dataclass(frozen=True)
class Server(_MLflow):
    """An MLflow server at `url`; None takes the environment's MLFLOW_TRACKING_URI."""

    url: str | None = None
    experiment: str = "compressbench"

    def __post_init__(self) -> None:
        self._store()

    def _store(self) -> TrackingStore:
        return tracking_store(self.url or os.environ.get("MLFLOW_TRACKING_URI", ""))


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
