"""MLflow's database is made whole or not at all; what is not whole is set aside and made anew."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest

from compressbench.cli.sync import sync
from compressbench.tracking import local_database
from compressbench.tracking.local_database import look_at, ready, sqlite_uri
from compressbench.tracking.mlflow_client import TrackingStore, client_of, explain, troubles
from compressbench.tracking.outbox import Outbox
from tests.faults.disks import resize, small_disk
from tests.faults.tracked_run import append_run, runs_in

MAKE = "import sys, pathlib; from compressbench.tracking.local_database import ready; "
MAKE += "print(ready(pathlib.Path(sys.argv[1])))"


def cut(size):
    return lambda path: os.truncate(path, size)


def run_sql(*statements):
    def change(path):
        with closing(sqlite3.connect(path)) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    return change


def flip_page(path):
    content = bytearray(path.read_bytes())
    content[8192:8292] = bytes(100)
    path.write_bytes(content)


def become_folder(path):
    path.unlink()
    path.mkdir()


BROKEN = {
    "empty": cut(0),
    "a few bytes": cut(50),
    "cut in the middle": cut(300_000),
    "cut at the last page": cut(950_272),
    "a page of zeros": flip_page,
    "garbage": lambda path: path.write_bytes(b"not a database " * 999),
    "a folder": become_folder,
    "no version": run_sql("DROP TABLE alembic_version"),
    "a version without a row": run_sql("DELETE FROM alembic_version"),
    "an older version, no runs": run_sql("UPDATE alembic_version SET version_num='451aebb31d03'"),
    "a table too few": run_sql("DROP TABLE trace_tags"),
}


@pytest.fixture
def at_once(monkeypatch):
    """A file that was just written counts as given up if nobody has it open."""
    monkeypatch.setattr(local_database, "QUIET_SECONDS", 0.0)


@pytest.mark.parametrize("kind", BROKEN)
def test_row_28_a_broken_database_is_recognized(home, kind):
    assert look_at(home / "mlflow.db") == ("", False)
    BROKEN[kind](home / "mlflow.db")
    fault, is_old = look_at(home / "mlflow.db")
    assert fault
    assert not is_old


def test_row_28_a_broken_database_is_kept_and_made_anew(home, at_once):
    path = home / "mlflow.db"
    path.write_bytes(b"garbage")
    said = ready(path)
    (kept,) = home.glob("mlflow.db.set-aside-*[0-9]")
    assert kept.name in said
    assert "file is not a database" in said
    assert kept.read_bytes() == b"garbage"
    assert look_at(path) == ("", False)
    assert ready(path) == ""


def test_row_28_a_journal_without_its_database_is_not_played_into_the_new_one(tmp_path):
    orphan = tmp_path / "mlflow.db-wal"
    orphan.write_bytes(b"of another database")
    assert ready(tmp_path / "mlflow.db") == ""
    (kept,) = tmp_path.glob("mlflow.db.set-aside-*-wal")
    assert kept.read_bytes() == b"of another database"
    assert look_at(tmp_path / "mlflow.db") == ("", False)


def test_row_28_a_database_that_another_process_makes_is_left_alone(tmp_path):
    path = tmp_path / "mlflow.db"
    hold = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); "
        "c.execute('CREATE TABLE runs (a)'); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"open\n"
        before = path.read_bytes()
        with pytest.raises(OSError, match="another process is making it"):
            ready(path)
        assert path.read_bytes() == before
        other.stdin.close()


def test_row_28_runs_are_logged_again_into_a_new_database(home, capsys):
    append_run(home / "runs" / "a", home)
    assert sync([str(home / "runs" / "a")]) == 0
    assert runs_in(home) == [("n", "FINISHED")]
    fresh = home / "fresh"
    (home / "mlflow.db").rename(fresh)
    with closing(sqlite3.connect(fresh)) as connection:
        for table in ("tags", "metrics", "latest_metrics", "params", "runs"):
            connection.execute(f"DELETE FROM {table}")
        connection.commit()
    shutil.copyfile(fresh, home / "mlflow.db")
    assert sync([str(home / "runs" / "a")]) == 0
    assert "4 of 4 operations" in capsys.readouterr().out
    assert runs_in(home) == [("n", "FINISHED")]


def test_row_28_a_full_disk_leaves_no_database_behind(tmp_path):
    with small_disk(tmp_path / "disk", "300k") as disk:
        store = TrackingStore(sqlite_uri(disk / "mlflow.db"), str(disk / "files"))
        with pytest.raises(troubles()) as full:
            client_of(store)
        assert f"bytes are needed in {disk}" in explain(full.value, store)
        assert [p.name for p in disk.iterdir()] == [".mlflow.lock"]
        resize(disk, "8m")
        assert client_of(store).notice == ""


@pytest.mark.long
@pytest.mark.parametrize("size", [0, 1, 60_000, 200_000, 400_000, 700_000, 900_000])
def test_row_28_a_kill_while_it_is_made_leaves_none(tmp_path, size):
    """Killed when the file has `size` bytes; 0 is before it exists."""
    path = tmp_path / "mlflow.db"
    process = subprocess.Popen([sys.executable, "-c", MAKE, str(path)])
    while (
        max((p.stat().st_size for p in tmp_path.glob(".mlflow.db.*/mlflow.db")), default=0) < size
    ):
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not path.exists()
    subprocess.run([sys.executable, "-c", MAKE, str(path)], check=True)
    assert look_at(path) == ("", False)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mlflow.lock", "mlflow.db"]


@pytest.mark.long
def test_row_28_many_processes_make_one_database(tmp_path):
    path = tmp_path / "mlflow.db"
    makers = [subprocess.Popen([sys.executable, "-c", MAKE, str(path)]) for _ in range(4)]
    assert [maker.wait() for maker in makers] == [0] * 4
    assert look_at(path) == ("", False)


@pytest.mark.long
def test_row_28_mlflow_may_make_its_own_at_the_same_time(tmp_path):
    """As `mlflow ui` does: in place, step by step. The run is logged when that is done."""
    append_run(tmp_path / "run", tmp_path)
    make = "import sys, mlflow; mlflow.MlflowClient(sys.argv[1]).get_experiment('0')"
    uri = sqlite_uri(tmp_path / "mlflow.db")
    with subprocess.Popen([sys.executable, "-c", make, uri]) as other:
        while not (tmp_path / "mlflow.db").exists():
            assert other.poll() is None
        os.kill(other.pid, signal.SIGSTOP)  # in the middle, for as long as we look
        assert sync([str(tmp_path / "run")]) == 1
        os.kill(other.pid, signal.SIGCONT)
        assert other.wait() == 0
    assert sync([str(tmp_path / "run")]) == 0
    assert runs_in(tmp_path) == [("n", "FINISHED")]
    assert not list(tmp_path.glob("*.set-aside-*"))


@pytest.mark.long
def test_row_28_a_locked_database_is_logged_to_later(home):
    append_run(home / "run", home)
    hold = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN EXCLUSIVE'); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, str(home / "mlflow.db")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as other:  # fmt: skip
        assert other.stdout.readline() == b"locked\n"
        started = time.monotonic()
        assert sync([str(home / "run")]) == 1
        assert time.monotonic() - started < 60
        other.stdin.close()
    assert sync([str(home / "run")]) == 0
    assert runs_in(home) == [("n", "FINISHED")]
    assert Outbox(home / "run").has_all(TrackingStore(sqlite_uri(home / "mlflow.db")).shown)


@pytest.mark.long
def test_row_28_an_older_database_with_runs_is_upgraded_whole(home):
    from alembic import command
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    path = home / "mlflow.db"
    path.unlink()
    engine = create_engine(sqlite_uri(path))
    Base.metadata.create_all(engine)
    config = _get_alembic_config(sqlite_uri(path))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "451aebb31d03")
    engine.dispose()
    run_sql(
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
        "VALUES (1, 'old', 'x', 'active')",
        "INSERT INTO runs (run_uuid, name, experiment_id, status, start_time, lifecycle_stage, "
        "artifact_uri, source_type, user_id) VALUES "
        "('abc', 'of old', 1, 'FINISHED', 1, 'active', 'y', 'LOCAL', 'u')",
    )(path)
    before = path.read_bytes()
    assert look_at(path) == ("", True)
    said = ready(path)
    (kept,) = home.glob("mlflow.db.before-upgrade-*")
    assert kept.name in said
    assert kept.read_bytes() == before
    assert look_at(path) == ("", False)
    assert runs_in(home) == [("of old", "FINISHED")]
