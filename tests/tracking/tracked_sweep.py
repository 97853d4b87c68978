"""A sweep as it is tracked, and what the database then has."""

from __future__ import annotations

import sqlite3

from compressbench.tracking.mlflow_client import TrackingStore
from tests.sample_steps import make_steps
from tests.sample_sweep import SPARSITY

CONFIG = {"recipe": {"stages": {"prune": {"sparsity": 0.5}, "quantize": {"bits": 8}}}}


PARAMS = {"n_trials": 8, "space": {SPARSITY: "interval(0.3, 0.95)"}}


def store_at(home):
    return TrackingStore(f"sqlite:///{home / 'mlflow.db'}", (home / "mlartifacts").as_uri())


def rows(home, query):
    with sqlite3.connect(home / "mlflow.db") as connection:
        return connection.execute(query).fetchall()


def counts(home):
    tables = ("runs", "metrics", "params", "tags")
    return {t: rows(home, f"select count(*) from {t}")[0][0] for t in tables}


def log_trial(tracker, folder, number, steps=1, finish=True):
    trial = folder / "trials" / str(number)
    trial.mkdir(parents=True, exist_ok=True)
    session = tracker.start_trial(trial, f"trial {number}", {"recipe": "q"}, CONFIG, "s-1")
    for step in make_steps()[:steps]:
        session.log_step(step)
    if finish:
        session.finish("FINISHED", "done", [])
    return session


def log_sweep(tracker, folder, sweep):
    """A sweep with its complete trials; returns the session, not yet finished."""
    session = tracker.open_sweep(folder, "digits", {"model": "cnn"}, PARAMS, "s-1")
    for trial in sweep.trials:
        if trial.state == "complete":
            assert log_trial(tracker, folder, trial.number).run == trial.run
    session.changed(sweep)
    return session


def tagged(home):
    query = (
        "select r.name from runs r join tags t on t.run_uuid = r.run_uuid "
        "where t.key = 'pareto' and t.value = 'true' order by r.name"
    )
    return [row[0] for row in rows(home, query)]


def volumes(home):
    query = "select step, value from metrics where key = 'front/hypervolume' order by step"
    return rows(home, query)
