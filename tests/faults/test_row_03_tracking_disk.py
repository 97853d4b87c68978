"""The disk of an outbox, or of MLflow's database, is full: what was there stays, and is named."""

from __future__ import annotations

import re

import pytest

from compressbench.cli.sync import sync
from compressbench.core.errors import UserError
from compressbench.tracking import run_session
from compressbench.tracking.mlflow_client import Connection
from compressbench.tracking.outbox import Outbox
from compressbench.tracking.run_drain import drain
from compressbench.tracking.trackers import Local
from tests.faults.disks import resize, small_disk
from tests.faults.tracked_run import METRICS, append_run, local_store, metrics_in, runs_in
from tests.sample_steps import make_steps

ROOM = r": cannot write [\d,]+ bytes: No space left on device \([\d,]+ bytes are free\)"
FULL = rf"outbox\.jsonl{ROOM}"


def fill(disk):
    """Leave nothing of a small disk."""
    with (disk / "large").open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
        while True:
            file.write(bytes(4096))


def test_row_03_an_outbox_on_a_full_disk_stays_as_it_was(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        outbox = Outbox(disk)
        outbox.append({"do": "note", "text": "a"})
        before = outbox.records.read_bytes()
        fill(disk)
        with pytest.raises(UserError, match=FULL):
            outbox.append({"do": "note", "text": "b" * 9000})
        assert outbox.records.read_bytes() == before
        (disk / "large").unlink()
        outbox.append({"do": "note", "text": "b" * 9000})
        assert [o["text"][:1] for o in outbox.read()] == ["a", "b"]
        assert outbox.lines().complaint == ""


@pytest.mark.long
def test_row_03_a_run_whose_disk_is_full_ends_with_one_line(home, monkeypatch):
    monkeypatch.setattr(run_session, "END_SECONDS", 60.0)
    with small_disk(home / "disk", "64k") as disk:
        session = Local(str(home)).start(disk, "n", {}, {})
        session.log_step(make_steps()[0])
        fill(disk)
        with pytest.raises(UserError, match=FULL):
            for step in make_steps() * 20:
                session.log_step(step)
        ended = session.finish("FINISHED", "n" * 9000)
        assert re.search(FULL, ended.problem)
        assert "\n" not in ended.problem
        session.worker.communicate(timeout=120)


def test_row_03_a_cursor_that_cannot_be_written_costs_a_repetition(home):
    with small_disk(home / "disk", "64k") as disk:
        outbox = append_run(disk / "a", home)
        fill(disk)
        problem = drain(outbox, Connection(local_store(home)), ended=True)
        assert re.search(r"outbox\.done: the disk is full: [\d,]+ bytes needed", problem)
        (disk / "large").unlink()
        assert sync([str(outbox.folder)]) == 0
    assert runs_in(home) == [("n", "FINISHED")]
    assert metrics_in(home) == [tuple(m) for m in METRICS]


def test_row_03_a_database_on_a_full_disk_gets_the_rest_later(home):
    with small_disk(home / "disk", "1m") as disk:
        (disk / "mlflow.db").write_bytes((home / "mlflow.db").read_bytes())
        outbox = append_run(home / "a", disk)
        fill(disk)
        problem = drain(outbox, Connection(local_store(disk)), ended=True)
        assert re.search(rf"bytes are needed in {disk}, [\d,]+ are free", problem)
        resize(disk, "8m")
        assert sync([str(outbox.folder)]) == 0
        assert runs_in(disk) == [("n", "FINISHED")]
        assert metrics_in(disk) == [tuple(m) for m in METRICS]
