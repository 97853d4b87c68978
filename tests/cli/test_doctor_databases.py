"""Databases and servers that `compressbench doctor` finds broken, for tracking and sweeps."""

from __future__ import annotations

import sqlite3

from compressbench.cli.checks import (
    databases,
    storage,
    tracking,
)
from compressbench.cli.checks.finding import BROKEN, FINE
from tests.cli.findings import only
from tests.cli.servers import babbling_server, mlflow_server, refusing_server, silent_server
from tests.faults.disks import small_disk


def test_a_database_of_mlflow_that_is_not_one_is_broken(settings, tmp_path):
    path = tmp_path / "mlflow.db"
    assert only(tracking.check(settings), "tracking").mark == FINE  # the first run makes it
    assert not path.exists()
    for content, reason in ((b"not a database" * 99, "file is not a database"),
                            (b"", "no such table: alembic_version")):  # fmt: skip
        path.write_bytes(content)
        found = only(tracking.check(settings), "tracking")
        assert found.mark == BROKEN
        assert reason in found.found
        assert path.read_bytes() == content


def test_a_database_that_another_program_holds_is_broken(home, settings, monkeypatch):
    monkeypatch.setattr(databases, "BUSY_SECONDS", 0.1)
    with sqlite3.connect(home / "mlflow.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        found = only(tracking.check(settings), "tracking")
    assert (found.mark, "database is locked" in found.found) == (BROKEN, True)


def test_a_database_of_mlflow_answers_and_is_left_as_it_was(home, settings):
    before = (home / "mlflow.db").read_bytes()
    assert only(tracking.check(settings), "tracking").mark == FINE
    assert (home / "mlflow.db").read_bytes() == before
    assert [p.name for p in home.iterdir()] == ["mlflow.db"]


def with_server(settings, url):
    tracker = "compressbench.tracking.trackers.Server"
    return {**settings, "tracking": {"_target_": tracker, "url": url}}


def test_a_server_that_is_away_silent_or_no_http_is_broken(settings, monkeypatch):
    monkeypatch.setattr(tracking, "_SECONDS", 0.2)
    for server, reason in ((refusing_server, "is unreachable: [Errno 111] Connection refused"),
                           (silent_server, "is unreachable: timed out"),
                           (babbling_server, "does not speak HTTP: ")):  # fmt: skip
        with server() as port:
            given = with_server(settings, f"http://user:hidden@127.0.0.1:{port}")
            found = only(tracking.check(given), "tracking")
        assert found.mark == BROKEN
        assert found.found.startswith(f"http://***@127.0.0.1:{port} {reason}")


def test_a_server_may_refuse_what_is_written(settings, tmp_path):
    """One that answers but allows reading alone is broken; one that allows writing is fine."""
    for status, mark in ((403, BROKEN), (404, FINE)):
        with mlflow_server(status) as port:
            given = with_server(settings, f"http://127.0.0.1:{port}")
            found = only(tracking.check(given), "tracking")
        assert found.mark == mark, found


def test_the_storage_of_sweeps_is_tried(settings, tmp_path):
    assert only(storage.check(settings), "sweep storage").mark == FINE
    assert list(tmp_path.iterdir()) == []
    with small_disk(tmp_path / "sweeps", "8k"):
        full = only(storage.check(settings), "sweep storage")
    assert full.mark == BROKEN
    assert full.found.startswith(f"SQLite in {tmp_path / 'sweeps'}: ")
    for url, reason in (("mysql://u:hidden@h/d", "must be null or postgresql://"),
                        ("postgresql://u:hidden@127.0.0.1:1/d", "")):  # fmt: skip
        found = only(storage.check({**settings, "storage": url}), "sweep storage")
        assert (found.mark, reason in found.found, "hidden" in found.found) == (BROKEN, True, False)
