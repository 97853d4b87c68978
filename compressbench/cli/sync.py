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
from compressbench.tracking.mlflow_client import TrackingStore, drain, open_commands, tracking_store
from compressbench.tracking.outbox import LOCK, RECORDS, Operation, Outbox
from compressbench.tracking.sweep_drain import SweepDrain

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
    return max((_sync(Outbox(folder.resolve()), arguments.to) for folder in folders), default=0)


def _run_folders() -> list[Path]:
    """All folders with an outbox, except those of trials, which are logged with their sweep."""
    found = {p.parent for top in TOPS for p in Path(top).rglob(RECORDS)}
    return sorted(f for f in found if f.parent.parent not in found)


def _drain(outbox: Outbox, store: TrackingStore, operations: Sequence[Operation]) -> str:
    if operations[0].get("kind") == "sweep":
        return SweepDrain(outbox.folder, store).drain(ended=True)
    return drain(outbox, store, ended=True)


def _sync(outbox: Outbox, to: str) -> int:
    from filelock import FileLock, Timeout

    operations = outbox.read()
    if not operations:
        print(f"{outbox.folder}: nothing to log here")
        return 0 if outbox.folder.is_dir() else 1
    store = _target(operations, to)
    before = outbox.state(store.shown)["done"]
    try:
        with FileLock(outbox.folder / LOCK, timeout=_WORKER_SECONDS):
            problem = _drain(outbox, store, operations)
    except Timeout:
        problem = "is still being written to by the run itself"
    if problem:
        print(f"{outbox.folder}: {store.shown} {problem}", file=sys.stderr)
        return 1
    state = outbox.state(store.shown)
    logged = state["done"] - before
    print(f"{outbox.folder}: {logged} of {len(operations)} operations logged to {store.shown}")
    print("  " + "  ".join(filter(None, open_commands(store, state["experiment"], state["run"]))))
    return 0


def _target(operations: Sequence[Operation], to: str) -> TrackingStore:
    """The server to log to: `to`, or the one that the run was configured with."""
    if to:
        return tracking_store(to)
    start = next(o for o in operations if o["do"] == "start")
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    if redact(named) == start["target"]:
        return TrackingStore(named)
    if f"{HIDDEN}@" in start["target"]:
        raise UserError(f"{start['target']}: credentials are not stored: give the URL with --to")
    return TrackingStore(start["target"], start["artifacts"])
