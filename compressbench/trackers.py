"""Where a run is logged: trackers for the config, and the session of one run.

The run appends what it wants logged to the outbox in its folder. A helper process drains that
into MLflow, so neither the seconds of importing MLflow nor a dead server hold the run up.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from compressbench.core import Step
from compressbench.outbox import LOG, Outbox
from compressbench.redact import redact
from compressbench.tracking import RUN_TAG, Place, open_commands, place_of

END_SECONDS = 4.5  # the longest that the end of a run waits for MLflow
_TEXT_LIMIT = 500
_WORKER = (
    "import sys; sys.path.append(sys.argv[1]); from compressbench.tracking import work; "
    "sys.exit(work(sys.argv[2], sys.argv[3]))"
)


@dataclass(frozen=True)
class Tracked:
    """How the logging of a run ended. `problem` is "" when MLflow has everything."""

    command: str = ""
    link: str = ""
    problem: str = ""


class Session(Protocol):
    """The logging of one run."""

    def log_step(self, step: Step) -> None: ...

    def finish(self, status: str, note: str, files: Sequence[Path]) -> Tracked:
        """Close the run. `status` is FINISHED, FAILED or KILLED; `note` is Markdown."""
        ...


class Tracker(Protocol):
    """Opens the logging of one run."""

    def start(
        self, folder: Path, name: str, tags: Mapping[str, str], config: Mapping[str, Any]
    ) -> Session: ...


@dataclass(frozen=True)
class Local:
    """`mlflow.db` and `mlartifacts/` in `folder`."""

    folder: str
    experiment: str = "compressbench"

    def start(
        self, folder: Path, name: str, tags: Mapping[str, str], config: Mapping[str, Any]
    ) -> Session:
        home = Path(self.folder).resolve()
        place = Place(f"sqlite:///{home / 'mlflow.db'}", (home / "mlartifacts").as_uri())
        return _start(place, self.experiment, folder, name, tags, config)


@dataclass(frozen=True)
class Server:
    """An MLflow server at `url`; None takes the environment's MLFLOW_TRACKING_URI."""

    url: str | None = None
    experiment: str = "compressbench"

    def __post_init__(self) -> None:
        self._place()

    def _place(self) -> Place:
        return place_of(self.url or os.environ.get("MLFLOW_TRACKING_URI", ""))

    def start(
        self, folder: Path, name: str, tags: Mapping[str, str], config: Mapping[str, Any]
    ) -> Session:
        return _start(self._place(), self.experiment, folder, name, tags, config)


@dataclass(frozen=True)
class NoTracking:
    """Nothing is logged; the run folder has everything."""

    def start(
        self, folder: Path, name: str, tags: Mapping[str, str], config: Mapping[str, Any]
    ) -> Session:
        return Unlogged()


@dataclass(frozen=True)
class Unlogged:
    """The session of a run without tracking."""

    def log_step(self, step: Step) -> None:
        pass

    def finish(self, status: str, note: str, files: Sequence[Path]) -> Tracked:
        return Tracked()


@dataclass(frozen=True)
class Logged:
    """The session of a run whose outbox a helper process drains."""

    outbox: Outbox
    place: Place
    worker: subprocess.Popen[bytes]

    def log_step(self, step: Step) -> None:
        """Figures with the stage's index as step; the training history with the epoch as step."""
        now = _now()
        taken = {**step.measurement.figures, "stage/seconds": step.seconds}
        figures: list[list[Any]] = [
            [_allowed(k), float(v), now, step.index] for k, v in taken.items()
        ]
        history: list[list[Any]] = [
            [_allowed(f"history/{step.name}/{name}"), float(value), now, epoch]
            for name, values in step.history.items()
            for epoch, value in enumerate(values)
        ]
        metrics = [m for m in (*figures, *history) if math.isfinite(m[1])]
        self.outbox.append({"do": "metrics", "metrics": metrics})

    def finish(self, status: str, note: str, files: Sequence[Path]) -> Tracked:
        """Hand over the rest and wait for it, at most `END_SECONDS`.

        `files` are files or folders inside the run folder.
        """
        if status not in ("FINISHED", "FAILED", "KILLED"):
            raise ValueError(f"status must be FINISHED, FAILED or KILLED, got {status!r}")
        paths = [str(f.resolve().relative_to(self.outbox.folder)) for f in files]
        self.outbox.append({"do": "note", "text": note})
        self.outbox.append({"do": "files", "paths": paths})
        self.outbox.append({"do": "finish", "status": status, "time": _now()})
        _stop(self.worker, kill=self.place.is_server)
        return self._ending()

    def _ending(self) -> Tracked:
        folder, state = self.outbox.folder, self.outbox.state(self.place.shown)
        command, link = "", ""
        if "run" in state:
            command, link = open_commands(self.place, state["experiment"], state["run"])
        if state["done"] == len(self.outbox.read()):
            (folder / LOG).unlink()
            return Tracked(command, link)
        late = "is unreachable" if self.place.is_server else "is still being written"
        problem = (
            f"tracking {'server ' * self.place.is_server}{self.place.shown} "
            f"{state.get('problem') or late}; everything is in {folder}; "
            f"`compressbench sync {shlex.quote(str(folder))}` logs it later"
        )
        return Tracked(command, link, problem)


def _start(
    place: Place,
    experiment: str,
    folder: Path,
    name: str,
    tags: Mapping[str, str],
    config: Mapping[str, Any],
) -> Logged:
    folder = folder.resolve()
    outbox = Outbox(folder)
    outbox.append(
        {
            "do": "start",
            "target": place.shown,
            "artifacts": place.artifacts,
            "experiment": experiment,
            "name": name,
            "tags": {**tags, RUN_TAG: uuid.uuid4().hex},
            "params": flatten(redact(config)),
            "time": _now(),
        }
    )
    command = [sys.executable, "-P", "-c", _WORKER, str(Path(__file__).parents[1]), str(folder)]
    with (folder / LOG).open("ab") as log:
        worker = subprocess.Popen(
            [*command, place.artifacts or ""],
            env={**os.environ, "MLFLOW_TRACKING_URI": place.uri},  # not argv: others can read that
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the run; the worker then logs its end
        )
    return Logged(outbox, place, worker)


def _stop(worker: subprocess.Popen[bytes], kill: bool) -> None:
    """Ask the worker to log what is left, and wait; a late one goes on alone, or is killed."""
    try:
        worker.communicate(b"\n", timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        if kill:
            worker.kill()
            worker.wait()


def flatten(config: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as `recipe.stages.prune.sparsity` -> "0.5"; lists as JSON."""
    if isinstance(config, Mapping) and config:
        parts = [flatten(v, f"{prefix}.{k}" if prefix else str(k)) for k, v in config.items()]
        return {name: text for part in parts for name, text in part.items()}
    if not prefix:
        return {}
    text = config if isinstance(config, str) else json.dumps(config, default=str)
    return {_allowed(prefix): text[:_TEXT_LIMIT]}


def _allowed(name: str) -> str:
    """The name as MLflow takes it: few characters, and no way out of a folder."""
    return re.sub(r"/+", "/", re.sub(r"[^\w.\-/ :]", "_", name)).strip("./")[:250]


def _now() -> int:
    return round(time.time() * 1000)
