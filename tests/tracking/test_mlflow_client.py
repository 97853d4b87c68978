from __future__ import annotations

import sqlite3
import time

import pytest

from compressbench.cli.sync import sync
from compressbench.core.errors import UserError
from compressbench.tracking.mlflow_client import TrackingStore, open_commands, tracking_store
from compressbench.tracking.outbox import CURSOR, Outbox
from compressbench.tracking.records import flatten
from compressbench.tracking.run_session import Logged
from compressbench.tracking.trackers import Local, NoTracking, Server
from tests.sample_steps import CONFIG, make_steps

NOTE = "| stage |\n| --- |\n| train |"


def log_run(tracker, folder):
    """A run of three stages that leaves a file and a folder; returns how its logging ended."""
    (folder / "artifact").mkdir(parents=True)
    (folder / "artifact" / "a.json").write_text("{}")
    (folder / "model.onnx").write_bytes(b"onnx")
    session = tracker.start(folder, "quantize digits", {"recipe": "quantize"}, CONFIG)
    for step in make_steps():
        session.log_step(step)
    return session.finish("FINISHED", NOTE, [folder / "model.onnx", folder / "artifact"])


def rows(database, query):
    with sqlite3.connect(database) as connection:
        return connection.execute(query).fetchall()


def counts(database):
    tables = ("runs", "metrics", "params", "tags")
    return {t: rows(database, f"select count(*) from {t}")[0][0] for t in tables}


def test_a_run_lands_in_sqlite_once_however_often_it_is_logged(tmp_path, capsys):
    home = tmp_path / "größe und maß"
    folder = home / "runs" / "a"
    ended = log_run(Local(str(home)), folder)
    deadline = time.monotonic() + 120  # the run's own worker may be late on a loaded machine
    while sync([str(folder)]):
        assert time.monotonic() < deadline
    database = home / "mlflow.db"
    run = rows(database, "select run_uuid, name, status from runs")
    assert [r[1:] for r in run] == [("quantize digits", "FINISHED")]
    onnx = "select step, value from metrics where key = 'size/onnx_bytes' order by step"
    assert rows(database, onnx) == [(0, 1e6), (1, 1e6), (2, 250e3)]
    loss = "select step, value from metrics where key = 'history/train/loss' order by step"
    assert rows(database, loss) == [(0, 1.0), (1, 0.5), (2, 0.25)]
    params = dict(rows(database, "select key, value from params"))
    assert params["recipe.stages.prune.sparsity"] == "0.5"
    assert params["tracking.url"] == "https://***@logs.example:5000/mlflow"
    tags = dict(rows(database, "select key, value from tags"))
    assert tags["mlflow.note.content"] == NOTE
    assert tags["recipe"] == "quantize"
    stored = {p.name for p in (home / "mlartifacts" / run[0][0]).rglob("*") if p.is_file()}
    assert stored == {"model.onnx", "a.json"}
    if not ended.problem:
        assert run[0][0] in ended.link
    assert f"runs/{run[0][0]}?workflowType=machine_learning" in capsys.readouterr().out

    before = counts(database)
    assert sync([str(folder)]) == 0
    (folder / CURSOR).unlink()  # a crash between MLflow's commit and the cursor's
    assert sync([str(folder)]) == 0
    assert counts(database) == before


def test_a_killed_run_is_shown_as_killed(tmp_path):
    session = Local(str(tmp_path)).start(tmp_path, "n", {}, {})
    session.log_step(make_steps()[0])
    session.worker.stdin.close()  # what the kernel does when the run is killed
    assert session.worker.wait(timeout=60) == 0
    assert rows(tmp_path / "mlflow.db", "select status from runs") == [("KILLED",)]


def test_sync_says_when_the_server_is_still_away(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    outbox = Outbox(tmp_path)
    outbox.append({"do": "start", "target": "http://127.0.0.1:9", "artifacts": None,
                   "experiment": "e", "name": "n", "tags": {"compressbench.run": "1"},
                   "params": {}, "time": 1})  # fmt: skip
    assert sync([str(tmp_path)]) == 1
    assert "unreachable" in capsys.readouterr().err
    assert outbox.state("http://127.0.0.1:9")["done"] == 0


def test_sync_finds_the_runs_of_the_working_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert sync([]) == 0
    assert "no run folders" in capsys.readouterr().out
    assert sync(["absent"]) == 1


def test_cursors_of_two_servers_are_apart(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.mark("http://a", {"done": 2})
    assert outbox.state("http://b") == {"done": 0}
    outbox.mark("http://b", {"done": 1})
    assert outbox.state("http://a") == {"done": 2}


def test_parameters_are_flat_text_within_the_limits():
    flat = flatten({"a": {"b": [1, None], "c": {}}, "d": "x" * 600, "e é": True})
    assert flat == {"a.b": "[1, null]", "a.c": "{}", "d": "x" * 500, "e é": "true"}


def test_parameters_have_names_that_mlflow_takes():
    assert flatten({}) == {}
    assert flatten({"..": {"a//b*": 1}}) == {"a/b_": "1"}


def test_without_tracking_nothing_is_written(tmp_path):
    session = NoTracking().start(tmp_path, "n", {}, {})
    assert session.finish("FINISHED", "", []).problem == ""
    assert not isinstance(session, Logged)
    assert not any(tmp_path.iterdir())


def test_a_server_needs_a_url(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"tracking\.url must start with http"):
        Server().start(tmp_path, "n", {}, {})
    with pytest.raises(UserError, match=r"got 'logs\.example'"):
        tracking_store("logs.example")


def test_commands_that_open_a_run():
    command, link = open_commands(TrackingStore("sqlite:////a b/mlflow.db", "file:///a"), "3", "r")
    assert "mlflow ui" in command
    assert "--backend-store-uri 'sqlite:////a b/mlflow.db' --port 5000" in command
    assert link == "http://127.0.0.1:5000/#/experiments/3/runs/r?workflowType=machine_learning"
    command, link = open_commands(TrackingStore("https://u:p@host/mlflow/"), "3", "r")
    assert command == ""
    assert link.startswith("https://***@host/mlflow/#/experiments/3/runs/r")
