"""Leases: one owner at a time, adoption, the fence; in one process and over kills."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from optuna.trial import TrialState

from compressbench.core.signals import SignalledError
from compressbench.search.result import Result
from compressbench.search.worker_loop import run_one, settle, work
from compressbench.store.processes import process_token
from tests.search.noop import answer, figures_of, make_spec, make_storage

ROOT = Path(__file__).parents[2]
OTHER = "another-machine"  # no token of this machine
DONE = Result("complete", {"val/accuracy": 0.5, "size/download_bytes": 9.0}).dump()


@pytest.fixture
def spec(tmp_path):
    return make_spec(tmp_path / "a sweep")


@pytest.fixture
def storage(spec):
    return make_storage(spec)


def expire(storage, task):
    storage.leases._change("UPDATE compressbench_tasks SET expires = 0 WHERE study = :study "
                        "AND task = :task", task=task)  # fmt: skip


def test_a_lease_belongs_to_one_until_it_expires(storage):
    leases, me = storage.leases, process_token()
    assert leases.hold("trial/0", me)
    assert leases.hold("trial/0", me)
    assert not leases.hold("trial/0", OTHER)
    assert not leases.adopt("trial/0", OTHER)
    assert leases.loose("trial") == []
    expire(storage, "trial/0")
    assert leases.loose("trial") == [("trial/0", 0)]
    assert leases.adopt("trial/0", OTHER)
    assert not leases.hold("trial/0", me)
    assert not leases.finish("trial/0", me, "late")
    assert leases.result("trial/0") is None
    assert leases.finish("trial/0", OTHER, "mine")
    assert not leases.finish("trial/0", OTHER, "twice")
    assert leases.result("trial/0") == "mine"


def test_a_task_is_lost_at_most_twice_and_a_release_is_no_loss(storage):
    leases, me = storage.leases, process_token()
    leases.hold("trial/0", me)
    for _ in range(5):
        leases.release("trial/0", me)
        assert leases.adopt("trial/0", me)
    for losses in (1, 2):
        assert not leases.condemn("trial/0", me, "x")
        expire(storage, "trial/0")
        assert leases.adopt("trial/0", me)
        assert not leases.loose("trial")
        assert leases.hold("trial/0", me), losses
    expire(storage, "trial/0")
    assert not leases.adopt("trial/0", me)
    assert leases.condemn("trial/0", OTHER, "failed")
    assert leases.result("trial/0") == "failed"


def test_of_many_who_adopt_at_once_one_does(storage):
    leases = storage.leases
    for number in range(10):
        leases.abandon(f"trial/{number}")
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda i, n=number: leases.adopt(f"trial/{n}", f"w{i}"), range(8)))
        assert sum(won) == 1


def test_a_dead_process_of_this_machine_loses_its_lease_at_once(storage):
    child = subprocess.run(
        [sys.executable, "-c", "from compressbench.store.processes import process_token as t; "
         "print(t())"], capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert storage.leases.hold("trial/0", child.stdout.strip())
    assert storage.leases.loose("trial") == [("trial/0", 0)]
    assert storage.leases.adopt("trial/0", process_token())


def test_the_late_result_of_a_paused_worker_is_refused_and_it_goes_on(spec, storage):
    """Its lease expires while it computes, another one adopts, and answers first."""
    told = []

    def paused(trial, lease):
        if trial.number == 0 and not told:
            storage.leases.hold("trial/0", "w")
            expire(storage, "trial/0")
            assert storage.leases.adopt("trial/0", OTHER)
            assert storage.leases.finish("trial/0", OTHER, DONE)
            told.append(1)
        return answer(trial, lease)

    work(storage, make_spec(spec.home, 3), "w", paused)
    first, *rest = storage.trials()
    assert first.values == [0.5, 9.0]
    for trial in rest:
        assert trial.values == list(figures_of(trial.params).values())


def test_a_worker_that_sees_its_lease_lost_stops_computing(spec):
    spec = make_spec(spec.home, 1, lease_seconds=0.06)
    storage = make_storage(spec)

    def perform(trial, lease):
        storage.leases.abandon("trial/0")  # as if another had taken it before the first heartbeat
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            lease.check()
            time.sleep(0.01)
        raise AssertionError("not noticed")

    trial = storage.new_trial(1, "w", ())
    run_one(storage, spec, "w", trial, perform)
    assert storage.trials()[0].state is TrialState.RUNNING


def test_a_stopped_worker_gives_its_trial_back_with_the_same_settings(spec, storage):
    seen = []

    def stopped(trial, lease):
        seen.append(answer(trial, lease).figures)
        raise SignalledError(signal.SIGTERM)

    with pytest.raises(SignalledError):
        work(storage, spec, "w", stopped)
    work(storage, make_spec(spec.home, 1), "w", answer)
    (trial,) = storage.trials()
    assert trial.values == list(seen[0].values())


def test_a_result_that_was_stored_but_not_told_is_told(spec, storage):
    trial = storage.new_trial(1, "w", ())
    settings = answer(trial, None)
    storage.leases.finish("trial/0", "w", settings.dump())
    assert settle(storage, spec, {}) is False
    assert settle(storage, spec, {}) is True
    assert storage.trials()[0].values == list(settings.figures.values())


def test_a_trial_without_a_lease_is_taken_over_after_the_time_of_one(spec):
    spec = make_spec(spec.home, 1, lease_seconds=0.3)
    storage = make_storage(spec)
    storage.new_trial(1, OTHER, ())  # no token of a process: dead
    work(storage, spec, "w", answer)
    assert storage.trials()[0].state is TrialState.COMPLETE


def start(spec, seconds):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.search.noop", spec.folder, str(seconds), str(spec.n_trials),
         str(spec.lease_seconds)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip


def test_killed_workers_lose_nothing(tmp_path):
    """Kill -9 of whole processes, again and again: every number ends once, with its own values."""
    spec, chance = make_spec(tmp_path / "sweep", 40), random.Random(0)
    storage = make_storage(spec)
    workers = [start(spec, 0.05) for _ in range(2)]
    kills = 0
    while any(w.poll() is None for w in workers):
        time.sleep(0.05)
        if kills < 2 and workers[0].stdout.readline():  # it has begun
            time.sleep(chance.uniform(0.05, 0.4))
            workers[0].send_signal(signal.SIGKILL)
            workers[0].wait()
            kills += 1
            workers = [*workers[1:], start(spec, 0.05)]
    assert kills == 2
    undisturbed = make_spec(tmp_path / "undisturbed", 40)
    calm = make_storage(undisturbed)
    work(calm, undisturbed, "w", answer)
    found, wanted = storage.trials(), calm.trials()
    assert [t.state for t in found] == [TrialState.COMPLETE] * 40
    assert [(t.number, t.params, t.values) for t in found] == [
        (t.number, t.params, t.values) for t in wanted
    ]
    folders = {int(p.parent.name): int(p.read_text()) for p in spec.home.glob("trials/*/*.json")}
    assert folders == {n: n for n in range(40)}
