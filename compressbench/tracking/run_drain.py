"""Drains the outbox of a run into MLflow, during the run or later."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compressbench.core.errors import UserError
from compressbench.core.kill_points import reached
from compressbench.core.redact import redact
from compressbench.tracking.mlflow_client import (
    Connection,
    NoMLflowError,
    TrackingStore,
    explain,
    troubles,
)
from compressbench.tracking.operations import apply
from compressbench.tracking.outbox import LOCK, Outbox
from compressbench.tracking.outbox_lines import Operation

RETRY_SECONDS = 5.0
LATER_SECONDS = 60.0  # how long a database that is busy is tried after the end of the run
_POLL_SECONDS = 0.25


def work(folder: str, artifacts: str) -> int:
    """Drain the outbox of `folder` until the run ends; return 0 if MLflow then has everything.

    Standard input signals the end: the run writes a byte when it is over, and the pipe closes if
    the run is killed.
    """
    from filelock import FileLock

    ended = threading.Event()
    threading.Thread(target=await_end, args=(ended,), daemon=True).start()
    outbox = Outbox(Path(folder))
    store = TrackingStore(os.environ["MLFLOW_TRACKING_URI"], artifacts or None)
    connection = Connection(store)
    with FileLock(outbox.folder / LOCK, timeout=10):
        return until_end(lambda last: drain(outbox, connection, last), ended, store, _POLL_SECONDS)


def until_end(
    step: Callable[[bool], str], ended: threading.Event, store: TrackingStore, poll_seconds: float
) -> int:
    """Drain over and over until the end; return 0 if MLflow then has everything.

    A database that is busy or full then gets some more time. A server does not: if it is down, it
    may be so for days.
    """
    deadline = None
    while True:
        last = ended.is_set()
        problem = step(last)
        if last:
            deadline = deadline or time.monotonic() + (0 if store.is_server else LATER_SECONDS)
            if not problem or time.monotonic() >= deadline:
                return 1 if problem else 0
            time.sleep(RETRY_SECONDS)
        else:
            ended.wait(RETRY_SECONDS if problem else poll_seconds)


def await_end(ended: threading.Event) -> None:
    """Set `ended` when standard input has a byte or is closed."""
    os.read(0, 1)
    ended.set()


def drain(outbox: Outbox, connection: Connection, ended: bool, again: bool = False) -> str:
    """Log the operations that the store does not have yet; return "" or the problem.

    With `again`, a store that has lost the run since gets all of it once more.
    """
    target = connection.store.shown
    lines, stored = outbox.lines(), outbox.state(target)
    state = lines.resumed(stored)
    complete = is_finished(lines.operations)
    if state["done"] == len(lines.entries) and (not ended or complete) and not again:
        return ""
    caught = troubles()
    try:
        client = connection.client()
        state = {**confirmed(client, state), "notice": client.notice}
        for operation, cursor in lines.after(state):
            if operation is not None:
                state |= apply(client, operation, state, outbox, connection.store)
                reached("tracking.applied")
            state |= {**cursor, "problem": ""}
            outbox.mark(target, state)
            reached("tracking.marked")
        if ended and not complete and "run" in state:
            client.set_terminated(state["run"], "KILLED")  # the run was killed before its end
    except caught as error:
        connection.close()
        if isinstance(error, NoMLflowError):
            state = {"done": 0}  # what it seemed to take may be lost
        return failed(outbox, connection.store, state, error)
    return ""


def is_finished(operations: Sequence[Operation]) -> bool:
    """Whether the last operation is the end of the run."""
    return bool(operations) and operations[-1]["do"] == "finish"


def confirmed(client: Any, state: dict[str, Any]) -> dict[str, Any]:
    """The state, from the start if the store does not have the run, because it is another one."""
    from mlflow.exceptions import MlflowException

    if "run" not in state:
        return state
    try:
        client.get_run(state["run"])
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {"done": 0}
    return state


def failed(outbox: Outbox, store: TrackingStore, state: dict[str, Any], error: Exception) -> str:
    """Note the problem beside the outbox, if that is possible, and return it."""
    problem = explain(error, store)
    print(redact(f"{store.shown}: {error}"), file=sys.stderr)
    try:
        outbox.mark(store.shown, {**state, "problem": problem})
    except UserError as full:
        print(full, file=sys.stderr)
    return problem
