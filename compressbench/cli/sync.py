"""`compressbench sync`: log runs that a tracking server has missed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from compressbench.core.errors import UserError
from compressbench.core.redact import HIDDEN, redact
from compressbench.results.sweep_file import TOPS
from compressbench.tracking.mlflow_client import (
    Connection,
    TrackingStore,
    open_commands,
    tracking_store,
)
from compressbench.tracking.outbox import LOCK, RECORDS, Outbox
from compressbench.tracking.outbox_lines import Operation
from compressbench.tracking.run_drain import drain
from compressbench.tracking.run_session import damage
from compressbench.tracking.sweep_drain import TRIALS, SweepDrain

_WORKER_SECONDS = 5.0  # the worker of a run that just ended may need this long


def sync(argv: Sequence[str]) -> int:
    """`compressbench sync [--to URL] [RUN ...]`: log what a server has missed; return 0 when it has
    everything.
    """
    parser = argparse.ArgumentParser("compressbench sync", description=sync.__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders; all when none is named")
    parser.add_argument("--to", default="", help="another MLflow server or database")
    arguments = parser.parse_args(argv)
    folders = arguments.runs or _run_folders()
    if not folders:
        print(f"no run folders under {'/, '.join(TOPS)}/")
    codes, errors = [0], []
    for folder in folders:
        try:
            codes.append(_sync(Outbox(folder.resolve()), arguments.to))
        except UserError as error:  # of one folder; the others are logged all the same
            errors.append(error)
    for other in errors[1:]:
        print(other, file=sys.stderr)
    if errors:
        raise errors[0]
    return max(codes)


def _run_folders() -> list[Path]:
    """All folders with an outbox, except those of trials, which are logged with their sweep."""
    found = {p.parent for top in TOPS for p in Path(top).rglob(RECORDS)}
    return sorted(f for f in found if f.parent.parent not in found)


def _sync(outbox: Outbox, to: str) -> int:
    lines = outbox.lines()
    if not lines.entries:
        print(f"{outbox.folder}: nothing to log here")
        return 0 if outbox.folder.is_dir() else 1
    start = _start(outbox, lines.operations)
    store = _target(start, to)
    before = lines.resumed(outbox.state(store.shown))
    problem, notice = _drain(outbox, store, start.get("kind") == "sweep")
    if notice:
        print(notice, file=sys.stderr)
    if problem:
        print(f"{outbox.folder}: {store.shown} {problem}", file=sys.stderr)
        return 1
    state = outbox.state(store.shown)
    known = before["done"] if before.get("run") == state["run"] else 0
    logged = sum(o is not None for o in lines.entries[known:])
    print(
        f"{outbox.folder}: {logged} of {len(lines.operations)} operations logged to {store.shown}"
    )
    print("  " + "  ".join(filter(None, open_commands(store, state["experiment"], state["run"]))))
    return _complain(outbox)


def _drain(outbox: Outbox, store: TrackingStore, is_sweep: bool) -> tuple[str, str]:
    """Log what is missing; return the problem, and what is to be said about the database."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(outbox.folder / LOCK, timeout=_WORKER_SECONDS):
            if is_sweep:
                drains = SweepDrain(outbox.folder, store)
                return drains.drain(ended=True, again=True), drains.connection.notice
            connection = Connection(store)
            return drain(outbox, connection, ended=True, again=True), connection.notice
    except Timeout:
        return "is still being written to by the run itself", ""


def _complain(outbox: Outbox) -> int:
    """Name the damaged lines of a run, or of a sweep and its trials; 1 if there are any."""
    folders = [outbox.folder, *sorted((outbox.folder / TRIALS).glob("*"))]
    said = [text for folder in folders if (text := damage(Outbox(folder)))]
    for text in said:
        print(text, file=sys.stderr)
    return 1 if said else 0


def _start(outbox: Outbox, operations: Sequence[Operation]) -> Operation:
    start = next((o for o in operations if o["do"] == "start"), None)
    if start is None:
        raise UserError(f"{outbox.records}: the start of the run is damaged; nothing can be logged")
    return start


def _target(start: Operation, to: str) -> TrackingStore:
    """The server to log to: `to`, or the one that the run was configured with."""
    if to:
        return tracking_store(to)
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    if redact(named) == start["target"]:
        return TrackingStore(named)
    if f"{HIDDEN}@" in start["target"]:
        raise UserError(f"{start['target']}: credentials are not stored: give the URL with --to")
    return TrackingStore(start["target"], start["artifacts"])
