"""A small run as it is written to an outbox, and what a database then has."""

from __future__ import annotations

import sqlite3
from contextlib import closing

from compressbench.tracking.mlflow_client import RUN_TAG, TrackingStore
from compressbench.tracking.outbox import Outbox
from compressbench.tracking.records import Opening, end_operations
from compressbench.tracking.trackers import Local

METRICS = [["val/accuracy", 0.5, 1_000, 0], ["val/accuracy", 0.75, 2_000, 1]]


def local_store(home):
    return Local(str(home))._store()


def append_run(folder, home, store: TrackingStore | None = None):
    """An outbox with four operations: start, metrics, files, finish; the file is `a.json`."""
    folder.mkdir(parents=True)
    (folder / "a.json").write_text("{}")
    outbox = Outbox(folder.resolve())
    opening = Opening(store or local_store(home), "compressbench", "n", {}, {"bits": 4})
    start = opening.operation("run", {RUN_TAG: "tag-of-" + folder.name})
    metrics = {"do": "metrics", "metrics": METRICS, "stage": 0}
    outbox.append(
        start, metrics, *end_operations("FINISHED", folder.resolve(), [folder / "a.json"])
    )
    return outbox


def rows(database, query):
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute(query).fetchall()


def runs_in(home):
    """Name and state of each run that is shown."""
    shown = "select name, status from runs where lifecycle_stage = 'active' order by name"
    return rows(home / "mlflow.db", shown)


def metrics_in(home):
    return rows(home / "mlflow.db", "select key, value, timestamp, step from metrics order by step")
