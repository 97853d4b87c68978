"""Starts the workers of a sweep, restarts those that die, and watches the sweep."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compressbench.config.boundary import child_environment
from compressbench.core.errors import UserError
from compressbench.results.sweep import FINISHED, Sweep
from compressbench.search.spec import Spec
from compressbench.search.storage import SweepStorage
from compressbench.search.worker import EXIT_USER

POLL_SECONDS, LOOK_SECONDS, GRACE_SECONDS = 0.1, 1.0, 15.0
MOST_DEATHS = 20  # of workers in a row without a finished trial
SAME_MISTAKES = 3  # trials that fail for the same mistake before any other end of a trial

OnChange = Callable[[Sweep], None]


@dataclass(frozen=True)
class Worker:
    """A running worker and its log file."""

    process: subprocess.Popen[str]
    log: Path

    def last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"no output in {self.log}"


def call_worker() -> subprocess.Popen[str]:
    """Start a process that imports what a worker needs, and waits for its sweep.

    It ends when its standard input does, so never outlives us.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "compressbench.search.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=child_environment(),
        start_new_session=True,  # Ctrl-C reaches us alone; we signal the workers
    )  # fmt: skip


def start_worker(process: subprocess.Popen[str], spec: Spec, index: int) -> Worker:
    """Send the spec of a sweep to a waiting process."""
    path = spec.home / "logs" / f"worker-{os.getpid()}-{index}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    message = {"spec": spec.dump(), "index": index, "log": str(path)}
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has died; the supervisor will notice
        process.stdin.write(json.dumps(message) + "\n")
        process.stdin.flush()
    return Worker(process, path)


def stop_workers(workers: Sequence[Worker]) -> None:
    """Ask the workers to return their trials; kill those that do not end in time."""
    for worker in workers:
        worker.process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    while any(w.process.poll() is None for w in workers) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


def supervise(
    spec: Spec,
    waiting: Sequence[subprocess.Popen[str]],
    storage: SweepStorage,
    look: Callable[[], Sweep],
    on_change: OnChange,
) -> None:
    """Run as many workers as are `waiting` until the sweep is finished; report changes, at most
    every second.
    """
    before = frozenset(t.number for t in look().trials if t.state in FINISHED)
    workers = [start_worker(process, spec, index) for index, process in enumerate(waiting)]
    try:
        started, deaths, seen, due = len(workers), 0, {}, 0.0  # type: ignore[var-annotated]
        while workers:
            time.sleep(POLL_SECONDS)
            for worker in [w for w in workers if w.process.poll() is not None]:
                workers.remove(worker)
                if _died(worker):
                    deaths += 1
                    _refuse_endless(deaths, worker)
                    workers.append(start_worker(call_worker(), spec, started))
                    started += 1
            if time.monotonic() < due and workers:
                continue
            began = time.monotonic()
            states = storage.states()
            if states != seen:
                seen, deaths, sweep = states, 0, look()
                on_change(sweep)
                _refuse_hopeless(storage, before)
            due = began + max(LOOK_SECONDS, 10 * (time.monotonic() - began))  # rarer when large
    finally:
        stop_workers(workers)


def _died(worker: Worker) -> bool:
    """Whether to restart a worker. Raises UserError with its message if the user made a mistake."""
    if worker.process.returncode == EXIT_USER:
        raise UserError(worker.last_words())
    return worker.process.returncode != 0


def _refuse_endless(deaths: int, worker: Worker) -> None:
    if deaths > MOST_DEATHS:
        raise RuntimeError(f"{deaths} workers died without a trial: {worker.last_words()}")


def _refuse_hopeless(storage: SweepStorage, before: frozenset[int]) -> None:
    """Raise UserError if the first trials all failed with the same mistake of the user."""
    results = storage.results()
    reasons = {r.reason for n, r in results.items() if n not in before}
    fresh = len(results.keys() - before)
    mistaken = all(r.kind == "user" for r in results.values())
    if mistaken and fresh >= SAME_MISTAKES and len(reasons) == 1:
        raise UserError(f"the first {fresh} trials failed: {reasons.pop()}")
