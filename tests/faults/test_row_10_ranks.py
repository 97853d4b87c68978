"""A process of a stage that dies, is stopped or waits for ever ends the others, with the reason."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from compressbench.core.errors import CheckFailedError
from compressbench.engine import rank_watch
from compressbench.engine.rank_watch import STACK_SIGNAL, RankWatch, place
from tests.end_to_end.running import environment, files_in, stages_in

TWO = ("trainer=ddp_cpu", "trainer.devices=2", "trainer.threads=1", "tracking=none")
LONG = ("recipe=baseline", "model=mlp", "recipe.stages.train.epochs=20000", *TWO)
IMPATIENT = (  # the command line, which waits for fewer seconds
    "from compressbench.engine import rank_watch\n"
    "rank_watch.STOPPED_SECONDS = rank_watch.IDLE_SECONDS = 12.0\n"
    "rank_watch._LEAST_TICKS = 6\n"
    "from compressbench.cli.main import main\n"
    "main()"
)
HANGS = """
import os, time
import torch
from compressbench.models.mlp import Mlp


class Net(Mlp):
    calls = 0

    def forward(self, inputs):
        Net.calls += 1
        if Net.calls > 40 and os.environ.get("RANK") == "1":
            time.sleep(1000)
        return super().forward(inputs)
"""


def command_line(pid: int) -> str:
    """Of a process that runs; empty for one that ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def ranks_of(process: subprocess.Popen[str]) -> list[int]:
    """The rank processes of a run, as the kernel lists its children."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if "engine.rank_process" in command_line(int(pid))]


@contextmanager
def training(tmp_path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], list[int], Path]]:
    """A run that trains on two processes: the run, its ranks, its store."""
    if not Path("/proc/self/task").exists():
        pytest.skip("needs Linux's /proc")
    store = tmp_path / "store"
    process = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, *arguments, "checkpoint_seconds=0"],
        cwd=tmp_path, env=environment(store), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not list(store.glob("tmp/work-*/fit.ckpt")) and time.monotonic() < deadline:
            time.sleep(0.1)
        ranks = ranks_of(process)
        assert len(ranks) == 2, process.poll()
        yield process, ranks, store
    finally:
        process.kill()


def ended_in_order(process, ranks, store, err) -> None:
    assert process.returncode == 3
    assert "Traceback" not in err
    assert not any(map(command_line, ranks)), "all ranks are gone"
    assert not stages_in(store)
    assert not [name for name in files_in(store) if name.startswith("tmp/build-")]


def test_row_10_a_rank_that_dies_ends_the_run_with_the_reason(tmp_path):
    with training(tmp_path, *LONG) as (process, ranks, store):
        os.kill(ranks[1], signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert "rank 1 was killed by signal 9; the other ranks were stopped" in err
    ended_in_order(process, ranks, store, err)


@pytest.mark.long
def test_row_10_a_rank_that_is_stopped_ends_the_run_with_the_reason(tmp_path):
    with training(tmp_path, *LONG) as (process, ranks, store):
        os.kill(ranks[1], signal.SIGSTOP)
        _, err = process.communicate(timeout=200)
    assert re.search(r"rank 1 is stopped \(SIGSTOP\) since \d\d:\d\d:\d\d; all ranks", err), err
    ended_in_order(process, ranks, store, err)


@pytest.mark.long
def test_row_10_ranks_that_all_wait_are_ended_and_say_where_they_are(tmp_path):
    """One rank sleeps in the user's code, so the other waits for its gradients."""
    (tmp_path / "hanging.py").write_text(HANGS)
    own = ("--allow", "hanging.*", "model._target_=hanging.Net")
    with training(tmp_path, *LONG, *own) as (process, ranks, store):
        _, err = process.communicate(timeout=250)
    assert re.search(r"no rank computes since \d\d:\d\d:\d\d: rank 0 is in \w+ at \w+\.py:\d+, "
                     r"rank 1 is in forward at hanging\.py:13; all ranks", err), err  # fmt: skip
    ended_in_order(process, ranks, store, err)


@pytest.mark.long
def test_row_10_a_scheduler_that_signals_all_processes_ends_the_run_as_one(tmp_path):
    """Slurm's SIGUSR1 reaches the ranks as well: the run answers, not they."""
    with training(tmp_path, *LONG) as (process, ranks, store):
        for pid in (*ranks, process.pid):
            os.kill(pid, signal.SIGUSR1)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1
    assert err.strip().splitlines() == [
        "compressbench: interrupted (SIGUSR1): run the same command to resume"
    ]
    assert not any(map(command_line, ranks))
    assert list(store.glob("tmp/work-*/fit.ckpt")), "the checkpoint of the fit"


SLEEPS = "import time; time.sleep(60)"
BUSY = "while True: pass"


@contextmanager
def processes(*scripts: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen([sys.executable, "-c", script]) for script in scripts]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def looked_at(tmp_path, pids, seconds) -> None:
    watch, end = RankWatch(pids, tmp_path), time.monotonic() + seconds
    while time.monotonic() < end:
        watch.look()
        time.sleep(0.05)


def test_row_10_a_process_that_is_stopped_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_watch, "STOPPED_SECONDS", 0.3)
    with processes(BUSY, BUSY) as (first, second):
        looked_at(tmp_path, [first.pid, second.pid], 0.6)
        second.send_signal(signal.SIGSTOP)
        with pytest.raises(CheckFailedError, match=r"rank 1 is stopped \(SIGSTOP\) since"):
            looked_at(tmp_path, [first.pid, second.pid], 20)


def test_row_10_a_process_that_goes_on_in_time_is_not_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_watch, "STOPPED_SECONDS", 30.0)
    with processes(BUSY) as (only,):
        only.send_signal(signal.SIGSTOP)
        looked_at(tmp_path, [only.pid], 0.3)
        only.send_signal(signal.SIGCONT)
        looked_at(tmp_path, [only.pid], 0.3)


def test_row_10_time_in_which_we_were_stopped_ourselves_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_watch, "STOPPED_SECONDS", 30.0)
    with processes(BUSY) as (only,):
        only.send_signal(signal.SIGSTOP)
        watch = RankWatch([only.pid], tmp_path)
        watch.looked -= 3600
        watch.look()


def test_row_10_processes_that_wait_are_ended_unless_one_of_them_works(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_watch, "IDLE_SECONDS", 1.0)
    monkeypatch.setattr(rank_watch, "_LEAST_TICKS", 3)
    monkeypatch.setattr(rank_watch, "STACK_SIGNAL", signal.SIGCONT)
    with processes(SLEEPS, SLEEPS) as waiting:
        time.sleep(0.5)  # they have started
        with pytest.raises(CheckFailedError, match=r"no rank computes since .*1 is somewhere"):
            looked_at(tmp_path, [p.pid for p in waiting], 20)


def test_row_10_a_stack_says_where_a_process_is(tmp_path):
    script = (
        "import faulthandler, threading, time\n"
        f"faulthandler.register({int(STACK_SIGNAL)}, file=open({str(tmp_path / 's')!r}, 'w'))\n"
        "def deep():\n"
        "    print(flush=True); time.sleep(60)\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "deep()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        process.send_signal(STACK_SIGNAL)
        deadline = time.monotonic() + 10
        while "deep" not in place(tmp_path / "s") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert place(tmp_path / "s") == "in deep at <string>:4"
    finally:
        process.kill()
        process.stdout.close()
