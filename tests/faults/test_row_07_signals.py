"""Signals that ask a run to stop: a line, a checkpoint, a report; the same command resumes."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from compressbench.core.signals import STOPPING
from compressbench.tracking.outbox_lines import line_of
from tests.end_to_end.running import command, environment, stages_in
from tests.faults import forked

pytestmark = pytest.mark.xdist_group("forked")

FIT = ("recipe=baseline", "model=mlp", "trainer=debug", "trainer.threads=1", "tracking=none",
       "recipe.stages.train.epochs=20000", "checkpoint_seconds=0")  # fmt: skip


def line(number: signal.Signals) -> str:
    return f"compressbench: interrupted ({number.name}): run the same command to resume"


def wait_for(condition, running: forked.Forked) -> None:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        assert running.process.exitcode is None, running.said
        time.sleep(0.02)


def in_a_fit(folder: Path, *more: str, **environment: str) -> forked.Forked:
    """A run that has saved a checkpoint and trains on."""
    running = forked.start([*FIT, *more], folder, folder / "store", **environment)
    wait_for(lambda: list(folder.glob("store/tmp/work-*/fit.previous")), running)
    return running


OFTEN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
SIGNALS = [
    pytest.param(n, id=n.name, marks=() if n in OFTEN else pytest.mark.long) for n in STOPPING
]


@pytest.mark.parametrize("number", SIGNALS)
def test_row_07_a_signal_ends_a_fit_with_a_line(number, tmp_path):
    running = in_a_fit(tmp_path)
    os.kill(running.process.pid, number)
    ended = running.wait()
    assert ended.code == 128 + number
    assert ended.err.strip() == line(number)
    (run,) = tmp_path.glob("runs/*/*")
    assert json.loads((run / "report.json").read_text())["status"] == "killed"
    assert list(tmp_path.glob("store/tmp/work-*/fit.ckpt"))
    assert not stages_in(tmp_path / "store")


def test_row_07_signals_in_quick_succession_are_one(tmp_path):
    running = in_a_fit(tmp_path)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        os.kill(running.process.pid, number)
    ended = running.wait()
    assert ended.code in {128 + n for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    assert ended.err.strip() in {line(signal.Signals(ended.code - 128))}
    (run,) = tmp_path.glob("runs/*/*")
    assert json.loads((run / "report.json").read_text())["status"] == "killed"


@pytest.mark.long
def test_row_07_nohup_stays_nohup(tmp_path):
    running = in_a_fit(tmp_path, IGNORE_SIGHUP="1")
    os.kill(running.process.pid, signal.SIGHUP)
    time.sleep(0.3)
    assert running.process.exitcode is None
    os.kill(running.process.pid, signal.SIGTERM)
    assert running.wait().err.strip() == line(signal.SIGTERM)


def test_row_07_a_job_of_slurm_ends_as_any_run(tmp_path):
    """Lightning would requeue the job, and insist on as many devices as the job has tasks."""
    slurm = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "7",
             "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
             "SLURM_NODELIST": "host"}  # fmt: skip
    running = in_a_fit(tmp_path, **slurm)
    os.kill(running.process.pid, signal.SIGUSR1)
    ended = running.wait()
    assert (ended.code, ended.err.strip()) == (128 + signal.SIGUSR1, line(signal.SIGUSR1))


def test_row_07_a_command_that_waits_for_a_server_ends(tmp_path):
    """The server takes the connection, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        (tmp_path / "runs" / "x").mkdir(parents=True)
        start = {"do": "start", "kind": "run", "experiment": "e", "name": "n", "time": 0,
                 "tags": {"compressbench.run": "t"}, "params": {},
                 "target": f"http://127.0.0.1:{server.getsockname()[1]}",
                 "artifacts": None}  # fmt: skip
        (tmp_path / "runs" / "x" / "outbox.jsonl").write_bytes(line_of(start))
        running = forked.start(["sync"], tmp_path, tmp_path / "store")
        server.settimeout(120)
        connection, _ = server.accept()
        with connection:
            os.kill(running.process.pid, signal.SIGTERM)
            ended = running.wait()
    assert (ended.code, ended.err.strip()) == (143, line(signal.SIGTERM))


def python(body: str, **pipes) -> subprocess.Popen[str]:
    prelude = (
        "import atexit, os, signal, sys, threading, time\n"
        "from compressbench.core import signals\n"
        "from compressbench.cli.main import guard\n"
        "stopping = signals.stop_on_signals()\n"
        "term = lambda: signal.raise_signal(signal.SIGTERM)\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + body], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, **pipes,
    )  # fmt: skip


LOST = """
class Last:
    def __del__(self): term()
def work():
    last = Last(); del last
    time.sleep(60)
sys.exit(guard(work))
"""
TRANSLATED = """
def work():
    try: term()
    except BaseException as error: raise ValueError("in a library") from error
sys.exit(guard(work))
"""
HALF_DONE = """
def work():
    try: term()
    except BaseException: pass
    raise RecursionError("of a module that was half imported")
sys.exit(guard(work))
"""
STUCK = """
signals.LAST_SECONDS = 0.3
def work():
    try: term()
    finally: time.sleep(60)
sys.exit(guard(work))
"""
REPEATED = """
signals.REPEAT_SECONDS = 0.3
def later(): time.sleep(0.6); os.kill(os.getpid(), signal.SIGTERM)
def work():
    try: term()
    finally: threading.Thread(target=later).start(); time.sleep(60)
sys.exit(guard(work))
"""


@pytest.mark.parametrize("body", [LOST, TRANSLATED, HALF_DONE, STUCK, REPEATED])
def test_row_07_a_signal_is_never_lost(body):
    """Raised in a destructor, caught by a library, in an end that hangs, sent again."""
    _, err = (process := python(body)).communicate(timeout=50)
    assert process.returncode == 143, err
    assert err.strip() == line(signal.SIGTERM)


def test_row_07_a_signal_after_the_end_leaves_the_exit_code():
    """While Python itself ends."""
    process = python("atexit.register(term); code = guard(lambda: 3); stopping.ended(code)\n"
                     "sys.exit(code)")  # fmt: skip
    _, err = process.communicate(timeout=50)
    assert (process.returncode, err) == (3, "")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(10))
def test_row_07_a_signal_at_any_moment(tmp_path, seed):
    """While torch is imported, the config composed, a model tried, exported and measured."""
    chance, store = random.Random(seed), tmp_path / "store"
    arguments = ("recipe=prune", "model=mlp", "trainer=debug", "trainer.threads=1",
                 "tracking=none", "recipe.stages.train.epochs=2")  # fmt: skip
    process = subprocess.Popen(
        command(*arguments), cwd=tmp_path, env=environment(store),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    number = chance.choice(STOPPING)
    try:
        time.sleep(0.5)  # Python itself starts
        with suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, 12))
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err.strip()) in ((128 + number, line(number)), (0, ""))
