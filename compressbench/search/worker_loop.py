"""The loop of a worker: take a trial, keep its lease alive, store its result, report it.

It takes first what another worker lost, then a new number. Several workers, in any process and on
any machine, may do this on one storage.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import sqlalchemy
from optuna.trial import Trial, TrialState

from compressbench.core.disk_full import DiskFullError
from compressbench.core.kill_points import reached
from compressbench.core.signals import SignalledError
from compressbench.search.leases import MOST_LOSSES
from compressbench.search.result import Result, load
from compressbench.search.spec import Spec
from compressbench.search.storage import OWNER, SweepStorage
from compressbench.store.processes import is_alive

IDLE_SECONDS = 0.3
TRIALS, RUNNING = "trials", "running"

Perform = Callable[[Trial, "Lease"], Result]


class LostLeaseError(BaseException):
    """Another worker has taken over our trial, so our result would be discarded."""


@dataclass(frozen=True)
class Lease:
    """A task that is ours as long as its heartbeat continues."""

    task: str
    owner: str
    lost: threading.Event

    def check(self, done: int = 0, total: int = 0, text: str = "") -> None:
        """Progress callback of a run: stops it once the lease is lost."""
        if self.lost.is_set():
            raise LostLeaseError(self.task)


@contextmanager
def holding(storage: SweepStorage, task: str, owner: str) -> Iterator[Lease]:
    """Keep a lease alive from a thread. A short task ends before its first heartbeat."""
    lease, over = Lease(task, owner, threading.Event()), threading.Event()

    def beat() -> None:
        while not over.wait(storage.leases.seconds / 3):
            try:
                if not storage.leases.hold(task, owner):
                    lease.lost.set()
                    return
            except sqlalchemy.exc.SQLAlchemyError as error:
                print(f"{task}: no heartbeat: {error}", file=sys.stderr)  # the next may succeed

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        over.set()
        thread.join()


def work(storage: SweepStorage, spec: Spec, owner: str, perform: Perform) -> None:
    """Take trials until `spec.n_trials` of the sweep are finished."""
    absent: dict[int, float] = {}
    settle(storage, spec, absent)
    while True:
        trial = _adopted(storage, spec, owner) or storage.new_trial(
            spec.n_trials, owner, spec.starts
        )
        if trial is not None:
            run_one(storage, spec, owner, trial, perform)
        elif settle(storage, spec, absent):
            return
        else:
            time.sleep(IDLE_SECONDS)


def run_one(storage: SweepStorage, spec: Spec, owner: str, trial: Trial, perform: Perform) -> None:
    """Run a trial, write its result if it is still ours, and report it to Optuna."""
    task = f"trial/{trial.number}"
    started = time.monotonic()
    try:
        with holding(storage, task, owner) as lease:
            reached("trial.held")
            result = perform(trial, lease)
            reached("trial.performed")
    except (SignalledError, DiskFullError):
        storage.leases.release(task, owner)
        raise
    except LostLeaseError:
        print(f"{task}: another worker took it over", file=sys.stderr)
        return
    seconds = round(time.monotonic() - started, 3)
    result = replace(result, seconds=seconds, ended=round(time.time(), 3))
    if storage.leases.finish(task, owner, result.dump()):
        reached("trial.result_stored")
        conclude(storage, spec, trial, owner, result)
    else:
        shutil.rmtree(work_folder(spec, trial.number, owner), ignore_errors=True)
        print(
            f"{task}: finished too late, another worker took it over: result discarded",
            file=sys.stderr,
        )


def conclude(storage: SweepStorage, spec: Spec, trial: Trial, owner: str, result: Result) -> None:
    """Finish a trial whose result is stored: move its folder into place and report it to Optuna."""
    folder = work_folder(spec, trial.number, owner)
    target = spec.home / TRIALS / str(trial.number)
    if folder.is_dir():
        target.parent.mkdir(exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # of a trial that the database has lost
        folder.rename(target)
        reached("trial.folder_moved")
    storage.tell(trial, result, spec.objectives, spec.constraints)


def work_folder(spec: Spec, number: int, owner: str) -> Path:
    """The working folder of one attempt; attempts never share one."""
    return spec.home / RUNNING / f"{number}-{owner}"


def _adopted(storage: SweepStorage, spec: Spec, owner: str) -> Trial | None:
    for task, losses in storage.leases.loose("trial"):
        number = int(task.partition("/")[2])
        reason = f"its worker died {losses + 1} times"
        if losses >= MOST_LOSSES:
            result = Result("failed", reason=reason, kind="lost")
            if storage.leases.condemn(task, owner, result.dump()):
                storage.tell(storage.trial(number), result, spec.objectives, spec.constraints)
        elif storage.leases.adopt(task, owner):
            return storage.trial(number)
    return None


def settle(storage: SweepStorage, spec: Spec, absent: dict[int, float]) -> bool:
    """Conclude results whose worker died before it could; True when no trial is left running.

    A running trial without a lease is one before its first heartbeat, or its worker is dead: on
    this machine that can be seen, on another it takes the time of a lease. `absent` notes since
    when.
    """
    running = storage.trials(TrialState.RUNNING)
    if not running:
        return True
    states = storage.leases.states("trial")
    now = time.monotonic()
    for trial in running:
        task = f"trial/{trial.number}"
        since = absent.setdefault(trial.number, now)
        if states.get(task) == "done":
            text = storage.leases.result(task)
            if text is not None:
                owner = storage.leases.owner(task)
                conclude(storage, spec, storage.trial(trial.number), owner, load(text))
        elif task not in states:
            alive = is_alive(trial.user_attrs[OWNER], 0.0)
            if not alive or now > since + storage.leases.seconds:
                storage.leases.abandon(task)
    return False
