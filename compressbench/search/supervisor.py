"""Starts the workers of a sweep, restarts those that die, and watches the sweep."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from compressbench.config.boundary import child_environment
from compressbench.core.errors import UserError
from compressbench.core.memory import ADVICE, oom_kills
from compressbench.results.sweep import FINISHED, Sweep
from compressbench.search.result import Result
from compressbench.search.spec import Spec
from compressbench.search.storage import SweepStorage
from compressbench.search.worker import EXIT_USER, READY
from compressbench.store.processes import is_stopped, token_of

POLL_SECONDS, LOOK_SECONDS, GRACE_SECONDS = 0.1, 1.0, 15.0
MOST_DEATHS = 20  # of workers in a row without a finished trial
STOPPED_SECONDS = 60.0  # a worker that is stopped for longer is replaced by another
SAME_MISTAKES = 3  # trials that fail for the same mistake before any other end of a trial

OnChange = Callable[[Sweep], None]


@dataclass
class Worker:
    """A worker, its log file, and what it says through its pipe: READY, or why it cannot start."""

    process: subprocess.Popen[str]
    log: Path
    stopped: float = 0.0  # seconds

    @functools.cached_property
    def said(self) -> str:
        """Of a worker that has ended."""
        assert self.process.stdout is not None
        with self.process.stdout as pipe:
            return pipe.read().strip()

    @property
    def started(self) -> bool:
        return self.said.endswith(READY)

    def last_words(self) -> str:
        lines = self.said.removesuffix(READY).splitlines()
        with contextlib.suppress(OSError):
            lines = lines or self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else self.ending()

    def ending(self) -> str:
        code = self.process.returncode
        killed = code < 0 and f"was killed by {signal.Signals(-code).name}"
        return f"{killed or f'ended with exit code {code}'} and said nothing"


@dataclass
class Deaths:
    """Of workers, without a finished trial in between."""

    in_row: int = 0
    at_start: str = ""  # what the last one said that died before its first trial
    for_memory: int = field(default_factory=oom_kills)  # killed by the kernel and known, or before

    def forget(self) -> None:
        self.in_row, self.at_start = 0, ""

    def was_for_memory(self, worker: Worker) -> bool:
        """Whether the kernel killed a worker, as far as its counter of such kills tells."""
        killed = worker.process.returncode == -signal.SIGKILL and oom_kills() > self.for_memory
        self.for_memory += killed
        return killed

    def count(self, worker: Worker) -> None:
        """Raise if the next worker would die of the same."""
        self.in_row += 1
        words = worker.last_words()
        if self.in_row > MOST_DEATHS:
            raise RuntimeError(f"{self.in_row} workers died without a trial: {words}; {worker.log}")
        if worker.started:
            return
        same = re.sub(r"\d+", "0", words)  # process ids, names of logs
        if same == self.at_start:
            text = f"two workers died as they started: {words}; the log: {worker.log}"
            raise UserError(text) if worker.process.returncode < 0 else RuntimeError(text)
        self.at_start = same


def call_worker() -> subprocess.Popen[str]:
    """Start a process that imports what a worker needs, and waits for its sweep.

    It ends when its standard input does, so never outlives us.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "compressbench.search.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=child_environment(),
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
        started, deaths, seen, due = len(workers), Deaths(), {}, 0.0  # type: ignore[var-annotated]
        while workers:
            time.sleep(POLL_SECONDS)
            _end_stopped(workers)
            for worker in [w for w in workers if w.process.poll() is not None]:
                workers.remove(worker)
                if _died(worker):
                    deaths.count(worker)
                    if deaths.was_for_memory(worker):
                        _fail_for_memory(worker, storage)
                    workers.append(start_worker(call_worker(), spec, started))
                    started += 1
            if time.monotonic() < due and workers:
                continue
            began = time.monotonic()
            states = storage.states()
            if states != seen:
                seen, sweep = states, look()
                deaths.forget()
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


def _fail_for_memory(worker: Worker, storage: SweepStorage) -> None:
    """Fail a trial whose process the kernel killed for memory: it would be killed again.

    The next worker reports it to the study (`worker_loop.settle`).
    """
    reason = f"out of memory: the kernel killed its process; {ADVICE}"
    result = Result("failed", reason=reason, kind="memory", ended=round(time.time(), 3))
    storage.leases.fail_task_of(token_of(worker.process.pid), result.dump())


def _end_stopped(workers: Sequence[Worker]) -> None:
    """Kill workers that were stopped (SIGSTOP) and do not go on; the time counts that we are awake.

    Another worker takes over the trial, by its lease or as soon as the process is dead.
    """
    for worker in workers:
        stopped = is_stopped(worker.process.pid)
        worker.stopped = worker.stopped + POLL_SECONDS if stopped else 0.0
        if worker.stopped >= STOPPED_SECONDS:
            print(f"a worker was stopped for {STOPPED_SECONDS:g} s: another takes its place",
                  file=sys.stderr)  # fmt: skip
            worker.process.kill()
            worker.process.wait()


def _refuse_hopeless(storage: SweepStorage, before: frozenset[int]) -> None:
    """Raise UserError if the first trials all failed with the same mistake of the user."""
    results = storage.results()
    reasons = {r.reason for n, r in results.items() if n not in before}
    fresh = len(results.keys() - before)
    mistaken = all(r.kind == "user" for r in results.values())
    if mistaken and fresh >= SAME_MISTAKES and len(reasons) == 1:
        raise UserError(f"the first {fresh} trials failed: {reasons.pop()}")
