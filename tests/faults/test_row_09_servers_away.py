"""A tracking server that is away, for a while or for good, or behind a proxy that loses answers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import pytest

from compressbench.cli.sync import sync
from compressbench.core.errors import UserError
from compressbench.tracking.mlflow_client import Connection, TrackingStore
from compressbench.tracking.run_drain import drain
from compressbench.tracking.trackers import Server
from tests.faults.bad_servers import listening, losing_answers
from tests.faults.tracked_run import METRICS, append_run, metrics_in, runs_in
from tests.sample_sweep import make_sweep
from tests.tracking.test_mlflow_client import log_run
from tests.tracking.tracked_sweep import (
    PARAMS,
    counts,
    log_sweep,
    log_trial,
    rows,
    store_at,
    tagged,
    volumes,
)


def test_row_09_a_dead_server_costs_a_sweep_seconds_in_all(tmp_path, home, capsys):
    folder = tmp_path / "runs" / "s"
    tracker, sweep = Server("http://ann:s3cret@127.0.0.1:9"), make_sweep(folder)
    started = time.monotonic()
    session = log_sweep(tracker, folder, sweep)
    for _ in range(20):
        session.changed(sweep)
    assert time.monotonic() - started < 5
    started = time.monotonic()
    ended = session.finish("FINISHED", sweep)
    assert time.monotonic() - started < 6
    assert "tracking server http://***@127.0.0.1:9" in ended.problem
    assert f"compressbench sync {folder}" in ended.problem
    assert not any(b"s3cret" in p.read_bytes() for p in folder.rglob("*") if p.is_file())
    session.worker.communicate(timeout=150)  # it gives up by itself

    assert sync([str(folder), "--to", store_at(home).uri]) == 0
    assert counts(home)["runs"] == 7
    assert len(volumes(home)) == 7
    assert tagged(home) == ["trial 0", "trial 3", "trial 4"]
    assert "operations logged" in capsys.readouterr().out


def test_row_09_a_dead_server_delays_the_end_by_less_than_six_seconds(home, capsys):
    folder = home / "runs" / "b"
    started = time.monotonic()
    ended = log_run(Server("http://ann:s3cret@127.0.0.1:9"), folder)
    assert time.monotonic() - started < 6
    assert re.search(r":9 (is unreachable|did not answer in time)", ended.problem)
    assert f"compressbench sync {folder}" in ended.problem
    assert not any(b"s3cret" in p.read_bytes() for p in folder.rglob("*") if p.is_file())

    with pytest.raises(UserError, match="--to"):
        sync([str(folder)])
    store = store_at(home).uri
    assert sync([str(folder), "--to", store]) == 0
    before = counts(home)
    assert before["runs"] == 1
    assert sync([str(folder), "--to", store]) == 0
    assert counts(home) == before
    assert "0 of 7 operations" in capsys.readouterr().out


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(home, port):
    """A real MLflow server on this machine."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port),
        "--backend-store-uri", f"sqlite:///{home / 'mlflow.db'}",
        "--artifacts-destination", str(home / "served"),
    ]  # fmt: skip
    light = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (home / "server.log").open("ab") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **light}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_for(lambda: answers(port), 120)
        yield
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answers(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.long
def test_row_09_a_server_that_is_away_for_a_while_has_everything_afterwards(home):
    port, folder = free_port(), home / "s"
    tracker, sweep = Server(f"http://127.0.0.1:{port}"), make_sweep(folder)
    with serving(home, port):
        session = tracker.open_sweep(folder, "digits", {}, PARAMS, "s-1")
        log_trial(tracker, folder, 0)
        session.changed(replace(sweep, trials=sweep.trials[:1]))
        wait_for(lambda: tagged(home) == ["trial 0"], 120)
    for number in (1, 2, 3):
        log_trial(tracker, folder, number)
    session.changed(replace(sweep, trials=sweep.trials[:4]))
    time.sleep(15)
    assert counts(home)["runs"] == 2
    with serving(home, port):
        log_trial(tracker, folder, 4)
        log_trial(tracker, folder, 5)
        session.finish("FINISHED", sweep)
        session.worker.communicate(timeout=120)
        if session.worker.returncode:  # the server was just up, a call may have come too early
            assert sync([str(folder)]) == 0
    assert rows(home, "select distinct status from runs") == [("FINISHED",)]
    assert counts(home)["runs"] == 7
    assert len(volumes(home)) == 7
    assert tagged(home) == ["trial 0", "trial 3", "trial 4"]
    assert {p.name for p in (home / "served").rglob("*.html")} == {"front.html"}


@pytest.mark.long
def test_row_09_lost_answers_lose_and_double_nothing(home, tmp_path):
    """Each request is obeyed, answered 502, and repeated; or answered in the server's place."""
    port, asked, forgotten = free_port(), [], []

    def lose(request):
        asked.append(request.partition(b" HTTP")[0])
        return request.startswith(b"POST") and asked.count(asked[-1]) % 2 == 1

    def forget(request):
        if forgotten or b"log-batch" not in request or b"val/accuracy" not in request:
            return False
        forgotten.append(request)
        return True

    with (
        serving(home, port),
        listening(losing_answers(port, lose)) as losing,
        listening(losing_answers(port, forget, empty=True)) as forgetting,
    ):
        store = TrackingStore(f"http://127.0.0.1:{losing}")
        outbox = append_run(tmp_path / "a", home, store)
        assert drain(outbox, Connection(store), ended=True) == ""
        assert asked.count(b"POST /api/2.0/mlflow/runs/create") == 2
        assert drain(outbox, Connection(store), ended=True, again=True) == ""

        store = TrackingStore(f"http://127.0.0.1:{forgetting}")
        outbox = append_run(tmp_path / "b", home, store)
        assert drain(outbox, Connection(store), ended=True) == "is not a server of MLflow"
        assert drain(outbox, Connection(store), ended=True) == ""
    assert runs_in(home) == [("n", "FINISHED")] * 2
    assert metrics_in(home) == [tuple(m) for m in METRICS for _ in range(2)]
