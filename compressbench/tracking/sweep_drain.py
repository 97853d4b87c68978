"""Drains the outboxes of a sweep and of all its trials into MLflow, in one process.

Draining is idempotent: runs are found by their tags, MLflow keeps a metric with the same name,
step, value and time only once, the tags of members are set and removed as needed, and of several
fronts in the outbox only the last is shown.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from compressbench.core.errors import UserError
from compressbench.core.redact import redact
from compressbench.results import front as fronts
from compressbench.results.front_html import write_page
from compressbench.results.front_picture import Picture
from compressbench.results.front_table import markdown
from compressbench.results.sweep import Sweep
from compressbench.results.sweep_file import SWEEP_FILE, read_sweep
from compressbench.tracking.mlflow_charts import view_tag
from compressbench.tracking.mlflow_client import (
    FOLDER_TAG,
    NOTE_TAG,
    RUN_TAG,
    SWEEP_TAG,
    Connection,
    NoMLflowError,
    TrackingStore,
    explain,
    is_refusal,
    open_commands,
    troubles,
)
from compressbench.tracking.operations import NOTE_LIMIT, apply
from compressbench.tracking.outbox import LOCK, RECORDS, Outbox
from compressbench.tracking.outbox_lines import Operation, Recorded
from compressbench.tracking.records import allowed
from compressbench.tracking.run_drain import (
    await_end,
    confirmed,
    failed,
    is_finished,
    until_end,
)

TRIALS = "trials"
PAGE = "front.html"
_POLL_SECONDS = 1.0
_TAKE_OVER_SECONDS = 4.0  # how long to wait at the end for another process of the sweep to stop
_MODE = "?workflowType=machine_learning"  # MLflow may otherwise open in another mode
_NICE = 5  # trials have priority
_PARENT_TAG, _MEMBER_TAG = "mlflow.parentRunId", "pareto"


def work(folder: str, artifacts: str) -> int:
    """Drain until the supervisor ends; return 0 if MLflow then has everything.

    Standard input signals the end (see `run_drain.work`). If another process drains the same
    folder, wait until it stops.
    """
    from filelock import FileLock, Timeout

    os.nice(_NICE)
    ended = threading.Event()
    threading.Thread(target=await_end, args=(ended,), daemon=True).start()
    drain = SweepDrain(
        Path(folder), TrackingStore(os.environ["MLFLOW_TRACKING_URI"], artifacts or None)
    )
    lock = FileLock(Path(folder) / LOCK)
    while not lock.is_locked:
        try:
            lock.acquire(timeout=_TAKE_OVER_SECONDS if ended.is_set() else _POLL_SECONDS)
        except Timeout:
            if ended.is_set():
                return 0 if drain.has_all() else 1
            drain.took_over = True
    with lock:
        return until_end(drain.drain, ended, drain.store, _POLL_SECONDS)


class SweepDrain:
    """Logs what `store` does not have yet of a sweep; the caller holds the lock of the folder."""

    def __init__(self, folder: Path, store: TrackingStore) -> None:
        self.outbox, self.store = Outbox(folder, shared=True), store
        self.connection = Connection(store)
        self.sizes: dict[Path, int] = {}  # logged bytes of each trial's outbox
        self.runs: dict[str, str] = {}  # tag of a trial -> id of its MLflow run
        self.params: set[str] = set()  # names of the params of all trials
        self.took_over = False  # from a process that has ended and marked the sweep as killed

    def has_all(self) -> bool:
        """Whether the sweep's own outbox (not its trials') is completely logged."""
        return self.outbox.has_all(self.store.shown)

    def _state(self) -> dict[str, Any]:
        return self.outbox.state(self.store.shown)

    def drain(self, ended: bool, again: bool = False) -> str:
        """Log everything new; return "" or the problem.

        If the server rejects a request of one trial, the other trials are still logged. With
        `again`, a store that has lost the sweep since gets all of it once more.
        """
        lines, state = self.outbox.lines(), self._state()
        operations, resumed = lines.operations, lines.resumed(state)
        left = resumed["done"] < len(lines.entries) or (ended and not is_finished(operations))
        if not operations or not (left or again or self._fresh()):
            return ""
        caught = troubles()
        try:
            client = self.connection.client()
            self._open(client, operations, confirmed(client, resumed), ended)
            problems = [self._trial(client, folder) for folder in self._fresh()]
            self._rest(client, lines)
            if ended:
                self._end(client, operations)
        except caught as error:
            self.connection.close()
            state = {"done": 0} if isinstance(error, NoMLflowError) else self._state()
            return failed(self.outbox, self.store, state, error)
        return next(filter(None, problems), "")

    def _open(
        self, client: Any, operations: Sequence[Operation], state: dict[str, Any], ended: bool
    ) -> None:
        """Find or create the run of the sweep, of which the trials need the id."""
        if "run" not in state:
            state |= apply(client, _start(operations), state, self.outbox, self.store)
            self.sizes.clear()  # the trials belong to another run now
            self.runs.clear()
        elif self.took_over and not ended:
            client.update_run(state["run"], "RUNNING")
        self.took_over = False
        state["notice"] = client.notice
        if state != self._state():
            self._mark(state)

    def _fresh(self) -> list[Path]:
        """Trial folders whose outbox has grown, sorted by name."""
        folder = self.outbox.folder / TRIALS
        if not folder.is_dir():
            return []
        grown = []
        for entry in os.scandir(folder):
            with suppress(FileNotFoundError):
                size = (Path(entry.path) / RECORDS).stat().st_size
                if size != self.sizes.get(Path(entry.path)):
                    grown.append(Path(entry.path))
        return sorted(grown)

    def _trial(self, client: Any, folder: Path) -> str:
        """Log one trial as far as its outbox goes; return "" or the problem if it is rejected."""
        outbox, parent = Outbox(folder, shared=True), self._state()["run"]
        try:
            size = outbox.records.stat().st_size
            lines = outbox.lines()
            state = lines.resumed(outbox.state(self.store.shown))
            if state.get("parent") != parent:
                state = {"done": 0, "parent": parent}
            for operation, cursor in lines.after(state):
                if operation is not None:
                    placed = _below(operation, parent, folder)
                    state |= apply(client, placed, state, outbox, self.store)
                state |= {**cursor, "problem": ""}
                outbox.mark(self.store.shown, state)
        except troubles() as error:
            if isinstance(error, NoMLflowError):
                outbox.mark(self.store.shown, {"done": 0})  # what it seemed to take may be lost
            if not is_refusal(error, self.store):
                raise
            print(redact(f"{folder}: {error}"), file=sys.stderr)
            return f"{explain(error, self.store)} (of {folder.name})"
        for operation in lines.operations:
            if operation["do"] == "start":
                self.runs[operation["tags"][RUN_TAG]] = state["run"]
                self.params.update(operation["params"])
        self.sizes[folder] = size
        return ""

    def _rest(self, client: Any, lines: Recorded) -> None:
        """Log the sweep's own operations; consecutive metrics go in one batch."""
        entries = lines.entries
        last = max((i for i, o in enumerate(entries) if o and o["do"] == "front"), default=-1)
        while (done := self._state()["done"]) < len(entries):
            operation, count, new = entries[done], 1, dict[str, Any]()
            if operation and operation["do"] == "metrics":
                ahead = entries[done:]
                ends = (i for i, o in enumerate(ahead) if o and o["do"] != "metrics")
                count = next(ends, len(ahead))
                metrics = [m for o in ahead[:count] if o for m in o["metrics"]]
                operation = {"do": "metrics", "metrics": metrics}
            if operation and operation["do"] != "front":
                new = apply(client, operation, self._state(), self.outbox, self.store)
            elif operation and done == last:
                self._show_front(client, self._state(), operation["members"])
            self._mark({**new, **lines.cursor(done + count)})

    def _mark(self, changes: dict[str, Any]) -> None:
        self.outbox.mark(self.store.shown, {**self._state(), "problem": "", **changes})

    def _show_front(self, client: Any, state: dict[str, Any], members: Sequence[str]) -> None:
        """Log the front: tags of members, a table as the run's note, the page, MLflow's charts."""
        run, experiment = state["run"], state["experiment"]
        self._tag(client, run, experiment, members)
        try:
            sweep = read_sweep(self.outbox.folder)
        except UserError as error:
            print(error, file=sys.stderr)  # a missing or damaged file must not block the rest
            return
        links = {
            trial.number: open_commands(self.store, experiment, self.runs[trial.run])[1]
            for trial in sweep.trials
            if trial.run in self.runs
        }
        # Links in the note are relative to MLflow's page, so they work on any host
        near = {number: f"#{link.partition('#')[2]}" for number, link in links.items()}
        picture = f"#/experiments/{experiment}/runs/{run}/artifacts/{PAGE}{_MODE}"
        client.set_tag(run, NOTE_TAG, markdown(sweep, near, picture)[:NOTE_LIMIT])
        page = self.outbox.folder / PAGE
        keyed = {(sweep.folder, number): link for number, link in links.items()}
        write_page(Picture([sweep], links=keyed), page)
        for path in (page, self.outbox.folder / SWEEP_FILE):
            client.log_artifact(run, path)
        self._prepare_charts(client, state, sweep)

    def _tag(self, client: Any, parent: str, experiment: str, members: Sequence[str]) -> None:
        """Set the tag `pareto = true` on members and remove it from other trials of this sweep."""
        below = f"tags.`{_PARENT_TAG}` = '{parent}'"
        tagged = {
            run.info.run_id
            for run in client.search_runs([experiment], f"{below} and tags.{_MEMBER_TAG} = 'true'")
        }
        wanted = {self._run_of(client, experiment, member) for member in members} - {""}
        for run in tagged - wanted:
            client.delete_tag(run, _MEMBER_TAG)
        for run in wanted - tagged:
            client.set_tag(run, _MEMBER_TAG, "true")

    def _run_of(self, client: Any, experiment: str, tag: str) -> str:
        """The MLflow run of a trial, possibly logged by another machine; "" if there is none."""
        if tag not in self.runs:
            found = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{tag}'")
            if not found:
                return ""
            self.runs[tag] = found[0].info.run_id
        return self.runs[tag]

    def _prepare_charts(self, client: Any, state: dict[str, Any], sweep: Sweep) -> None:
        """Try to save a view with charts; this uses an undocumented interface of MLflow."""
        start = _start(self.outbox.read())
        names = dict.fromkeys(allowed(name) for trial in sweep.trials for name in trial.settings)
        axes = fronts.axes(sweep)
        key, value = view_tag(
            start["tags"][SWEEP_TAG], start["name"], state["run"],
            (allowed(axes.x.name), allowed(axes.y.name)),
            [name for name in names if name in self.params], start["time"],
        )  # fmt: skip
        try:
            client.set_experiment_tag(state["experiment"], key, value)
        except troubles() as error:
            if not is_refusal(error, self.store):
                raise
            print(redact(f"MLflow's charts were not prepared: {error}"), file=sys.stderr)

    def _end(self, client: Any, operations: Sequence[Operation]) -> None:
        """Mark runs still RUNNING as KILLED; whoever resumes them sets them to RUNNING again."""
        if not is_finished(operations):
            client.set_terminated(self._state()["run"], "KILLED")
        below = f"tags.`{_PARENT_TAG}` = '{self._state()['run']}' and attributes.status = 'RUNNING'"
        for run in client.search_runs([self._state()["experiment"]], below):
            if run.data.tags.get(RUN_TAG) in self.runs:
                client.set_terminated(run.info.run_id, "KILLED")


def _start(operations: Sequence[Operation]) -> Operation:
    """The first start of the sweep. Raises UserError if its record was left out."""
    start = next((o for o in operations if o["do"] == "start"), None)
    if start is None:
        raise UserError("the record of the sweep's start is damaged, so nothing can be logged")
    return start


def _below(operation: Operation, parent: str, folder: Path) -> Operation:
    """The operation of a trial; its start gets the tag of the sweep's run."""
    if operation["do"] != "start":
        return operation
    here = {_PARENT_TAG: parent, FOLDER_TAG: str(folder)}
    return {**operation, "tags": {**operation["tags"], **here}}
