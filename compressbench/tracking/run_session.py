"""The logging of one run, as the run sees it: it appends to its outbox, and goes on.

A helper process drains the outbox into MLflow, so neither the seconds of importing MLflow nor a
dead server hold the run up.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressbench.core.types import Step
from compressbench.tracking.mlflow_client import RUN_TAG, TrackingStore, open_commands
from compressbench.tracking.outbox import LOG, Outbox
from compressbench.tracking.records import Opening, end_operations, step_operation

END_SECONDS = 4.5  # the longest that the end of a run waits for MLflow
_WORKER = (
    "import sys; sys.path.append(sys.argv[1]); from compressbench.tracking.{module} import work; "
    "sys.exit(work(sys.argv[2], sys.argv[3]))"
)


@dataclass(frozen=True)
class Tracked:
    """How the logging of a run ended. `problem` is "" when MLflow has everything.

    `charts` is the link of a sweep's trials in MLflow's own charts.
    """

    command: str = ""
    link: str = ""
    problem: str = ""
    charts: str = ""


def start_worker(folder: Path, store: TrackingStore, module: str) -> subprocess.Popen[bytes]:
    """A process that drains the outbox of `folder`; its standard input is its lifeline."""
    code = _WORKER.format(module=module)
    command = [sys.executable, "-P", "-c", code, str(Path(__file__).parents[2]), str(folder)]
    with (folder / LOG).open("ab") as log:
        return subprocess.Popen(
            [*command, store.artifacts or ""],
            env={**os.environ, "MLFLOW_TRACKING_URI": store.uri},  # not argv: others can read that
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the run; the worker then logs its end
        )


@dataclass(frozen=True)
class Logged:
    """The session of a run whose outbox a helper process drains."""

    outbox: Outbox
    store: TrackingStore
    worker: subprocess.Popen[bytes]
    run: str

    @classmethod
    def start(cls, opening: Opening, folder: Path) -> Logged:
        outbox, run = Outbox(folder.resolve()), uuid.uuid4().hex
        outbox.append(opening.operation("run", {RUN_TAG: run}))
        worker = start_worker(outbox.folder, opening.store, "mlflow_client")
        return cls(outbox, opening.store, worker, run)

    def log_step(self, step: Step) -> None:
        self.outbox.append(step_operation(step))

    def finish(self, status: str, note: str, files: Sequence[Path] = ()) -> Tracked:
        """Hand over the rest and wait for it, at most `END_SECONDS`.

        `files` are files or folders inside the run folder.
        """
        end = end_operations(status, self.outbox.folder, files)
        self.outbox.append({"do": "note", "text": note}, *end)
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
        problem = unlogged(self.store, folder, state.get("problem") or late, "it later")
        return Tracked(command, link, problem)


def unlogged(store: TrackingStore, folder: Path, reason: str, rest: str) -> str:
    """What to tell the user when MLflow does not have everything of a run or a sweep."""
    return (
        f"tracking {'server ' * store.is_server}{store.shown} {reason}; everything is in {folder}; "
        f"`compressbench sync {shlex.quote(str(folder))}` logs {rest}"
    )


def _stop(worker: subprocess.Popen[bytes], kill: bool) -> None:
    """Ask the worker to log what is left, and wait; a late one goes on alone, or is killed."""
    try:
        worker.communicate(b"\n", timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        if kill:
            worker.kill()
            worker.wait()
