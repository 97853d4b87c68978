"""Workers of a sweep that die as they start, or that are stopped: said, and not for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from compressbench.core.errors import UserError
from compressbench.results.sweep import Sweep
from compressbench.search import supervisor
from compressbench.search.worker import EXIT_USER, READY
from tests.search.noop import OBJECTIVES, make_spec, make_storage

WAIT = "import os, sys, time; sys.stdin.readline(); "
DIES = WAIT + "print('OSError: no space on /dev/%d' % os.getpid()); sys.exit(1)"
SILENT = WAIT + "os.kill(os.getpid(), 9)"
MISTAKEN = WAIT + f"print('x must be 3'); sys.exit({EXIT_USER})"
WORKS = WAIT + f"print({READY!r}, flush=True); sys.exit(0)"


def supervised(tmp_path, monkeypatch, *scripts):
    """Supervise a sweep whose workers are these scripts, one after the other; how many started."""
    spec, left = make_spec(tmp_path / "sweep", 3), list(scripts)

    def call():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        script = left.pop(0)
        return subprocess.Popen([sys.executable, "-c", script], **pipes, text=True)

    monkeypatch.setattr(supervisor, "call_worker", call)
    empty = Sweep("noop", str(spec.home), "", [], "accuracy", OBJECTIVES, (), 3, (), {})
    try:
        supervisor.supervise(spec, [call()], make_storage(spec), lambda: empty, lambda sweep: None)
    finally:
        started = len(scripts) - len(left)
        assert len([*spec.home.glob("logs/*.log")]) == started
    return started


def test_row_32_two_workers_that_die_of_the_same_end_the_sweep(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match=r"two workers died as they started: OSError: no space"):
        supervised(tmp_path, monkeypatch, DIES, DIES, WORKS)


def test_row_32_a_worker_that_says_nothing_is_reported_with_its_signal_and_log(
    tmp_path, monkeypatch
):
    with pytest.raises(UserError, match=r"was killed by SIGKILL and said nothing; .*-1\.log$"):
        supervised(tmp_path, monkeypatch, SILENT, SILENT, WORKS)


def test_row_32_another_worker_is_tried_after_another_error(tmp_path, monkeypatch):
    assert supervised(tmp_path, monkeypatch, DIES, SILENT, WORKS) == 3


def test_row_32_a_mistake_of_the_user_ends_the_sweep_at_once(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"^x must be 3$"):
        supervised(tmp_path, monkeypatch, MISTAKEN, WORKS)


def test_row_32_a_stopped_worker_is_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(supervisor, "STOPPED_SECONDS", 0.5)
    sleeps = WAIT + f"print({READY!r}, flush=True); os.kill(os.getpid(), {int(signal.SIGSTOP)})"
    assert supervised(tmp_path, monkeypatch, sleeps, WORKS) == 2
    assert "another takes its place" in capsys.readouterr().err


def test_row_32_a_worker_ends_with_its_supervisor_even_when_it_is_stuck():
    script = (
        "import signal, threading, time; from compressbench.search import worker\n"
        "worker._GRACE_SECONDS = 0.3; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "threading.Thread(target=worker._watch_parent, daemon=True).start(); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    try:
        process.stdin.close()
        assert process.wait(timeout=60) == -signal.SIGKILL
    finally:
        process.kill()


@pytest.mark.long
def test_row_32_a_sweep_goes_on_when_a_worker_is_stopped_for_ever(tmp_path):
    """A real sweep with one worker, and a minute in which it is stopped."""
    from compressbench.results.sweep_file import read_sweep
    from tests.end_to_end.running import command, environment

    words = ("-m", "recipe=baseline", "model=mlp", "trainer=debug", "trainer.threads=1",
             "tracking=none", "recipe.stages.train.epochs=1", "seed=choice(1,2)",
             "sampler@search.sampler=grid", "search.workers=1", "search.name=tiny")  # fmt: skip
    process = subprocess.Popen(
        command(*words), cwd=tmp_path, env=environment(tmp_path / "store"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob("sweeps/tiny/running/*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        (place,) = tmp_path.glob("sweeps/tiny/running/*")
        os.kill(int(place.name.split("-")[2]), signal.SIGSTOP)
        _, err = process.communicate(timeout=280)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert "another takes its place" in err
    assert [t.state for t in read_sweep(tmp_path / "sweeps" / "tiny").trials] == ["complete"] * 2
