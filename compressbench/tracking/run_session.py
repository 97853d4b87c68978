"""Logs one run: appends to its outbox, which a separate process drains into MLflow.

So neither the seconds that importing MLflow takes nor a dead server delay the run.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressbench.config.boundary import child_environment
from compressbench.core.errors import UserError
from compressbench.core.types import Step
from compressbench.tracking.mlflow_client import RUN_TAG, TrackingStore, open_commands
from compressbench.tracking.outbox import LOG, Outbox, unwritable
from compressbench.tracking.records import Opening, end_operations, step_operation

_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
END_SECONDS = 4.5  # how long the end of a run waits for MLflow at most
_WORKER = (
    "import sys; sys.path.append(sys.argv[1]); from compressbench.tracking.{module} import work\n"
    "from compressbench.core.redact import redacted_output\n"
    "with redacted_output(): sys.exit(work(sys.argv[2], sys.argv[3]))"
)


@dataclass(frozen=True)
class Tracked:
    """The result of logging a run or a sweep.

    `command` starts MLflow ("" for a server) and `link` opens the run in it; `charts` opens the
    trials of a sweep in MLflow's own charts; `problem` is "" if MLflow has everything.
    """

    command: str = ""
    link: str = ""
    problem: str = ""
    charts: str = ""


def start_worker(folder: Path, store: TrackingStore, module: str) -> subprocess.Popen[bytes]:
    """Start a process that drains the outbox of `folder` until its standard input ends."""
    code = _WORKER.format(module=module)
    command = [sys.executable, "-P", "-c", code, str(Path(__file__).parents[2]), str(folder)]
    own = child_environment(MLFLOW_TRACKING_URI=store.uri, **_ONE_THREAD)  # argv would be visible
    try:
        with (folder / LOG).open("ab") as log:
            return subprocess.Popen(
                [*command, store.artifacts or ""],
                env=own,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,  # Ctrl-C must not reach the worker, which logs the end
            )
    except OSError as error:
        raise UserError(unwritable(folder / LOG, 1, error)) from error


@dataclass(frozen=True)
class Logged:
    """The session of a run whose outbox a separate process drains."""

    outbox: Outbox
    store: TrackingStore
    worker: subprocess.Popen[bytes]
    run: str

    @classmethod
    def start(cls, opening: Opening, folder: Path) -> Logged:
        """Open the outbox in `folder` and start the process that drains it."""
        outbox, run = Outbox(folder.resolve()), uuid.uuid4().hex
        outbox.append(opening.operation("run", {RUN_TAG: run}))
        worker = start_worker(outbox.folder, opening.store, "run_drain")
        return cls(outbox, opening.store, worker, run)

    def log_step(self, step: Step) -> None:
        self.outbox.append(step_operation(step))

    def finish(self, status: str, note: str, files: Sequence[Path] = ()) -> Tracked:
        """Append the end of the run and wait at most `END_SECONDS` until it is logged.

        `files` are files or folders inside the run folder. What cannot be logged is a `problem` of
        the result: by now the run has its report, and an error here would hide one that ended it.
        """
        end = end_operations(status, self.outbox.folder, files)
        try:
            self.outbox.append({"do": "note", "text": note}, *end)
        except UserError as error:
            return Tracked(problem=f"the end of the run is not logged: {error}")
        _stop(self.worker, kill=self.store.is_server)
        return self._ending()

    def _ending(self) -> Tracked:
        folder, state = self.outbox.folder, self.outbox.state(self.store.shown)
        command, link = "", ""
        if "run" in state:
            command, link = open_commands(self.store, state["experiment"], state["run"])
        if self.outbox.has_all(self.store.shown):
            (folder / LOG).unlink(missing_ok=True)
            said = [state.get("notice"), damage(self.outbox)]
            return Tracked(command, link, "; ".join(filter(None, said)))
        late = "did not answer in time" if self.store.is_server else "is still being written"
        problem = unlogged(self.store, folder, state.get("problem") or late, "it later")
        return Tracked(command, link, problem)


def damage(outbox: Outbox) -> str:
    """Says which lines of an outbox could not be logged; "" if all were."""
    complaint = outbox.lines().complaint
    return complaint and f"{outbox.records}: {complaint}"


def unlogged(store: TrackingStore, folder: Path, reason: str, rest: str) -> str:
    """The message that MLflow does not have everything of a run or sweep, and how to fix it."""
    return (
        f"tracking {'server ' * store.is_server}{store.shown} {reason}; everything is in {folder}; "
        f"`compressbench sync {shlex.quote(str(folder))}` logs {rest}"
    )


def _stop(worker: subprocess.Popen[bytes], kill: bool) -> None:
    """Ask the worker to log the rest and wait; if it is late, kill it or let it go on alone."""
    try:
        worker.communicate(b"\n", timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        pass
    finally:  # also when a signal ends the waiting
        if kill and worker.returncode is None:
            worker.kill()
            worker.wait()
