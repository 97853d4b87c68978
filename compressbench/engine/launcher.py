"""Runs one stage on several processes: the parent decides and publishes, the ranks compute.

The ranks are processes without Hydra (rank_process.py) that start from a JSON file. When one dies,
the others are stopped and its last line of output becomes the error.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from compressbench.config.boundary import child_environment
from compressbench.core.errors import CheckFailedError, TransientError, UserError
from compressbench.core.memory import ADVICE, OutOfMemoryError, oom_kills
from compressbench.engine.rank_watch import RankWatch

if TYPE_CHECKING:
    from compressbench.engine.context import RunContext
    from compressbench.engine.stage_job import Job

EXIT_USER, EXIT_CHECK, EXIT_BUG = (
    101,
    103,
    170,
)  # of a rank; Python itself exits with 1 on import errors
POLL_SECONDS, GRACE_SECONDS = 0.2, 5.0


def run_on_ranks(
    stage: Job, parents: Mapping[str, str], run_context: RunContext, folder: Path, scratch: Path
) -> None:
    """Run a stage on `runtime.devices` ranks; the first one writes the artifact into `folder`.

    `parents` maps roles to keys in the store.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    job = scratch / "job.json"
    description = {
        "job": asdict(stage),
        "parents": dict(parents),
        "dataset": dict(run_context.dataset),
        "runtime": asdict(run_context.runtime),
        "checkpoint_seconds": run_context.checkpoint_seconds,
        "opset": run_context.opset,
        "store": str(run_context.store.root),
        "folder": str(folder),
        "scratch": str(scratch),
    }
    job.write_text(json.dumps(description))
    processes = [_start(r, run_context.runtime.devices, job, port) for port in [_free_port()]
                 for r in range(run_context.runtime.devices)]  # fmt: skip
    try:
        _watch(processes, scratch, run_context)
    finally:
        _stop(processes)


def _start(rank: int, ranks: int, job: Path, port: int) -> subprocess.Popen[bytes]:
    environment = child_environment(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        LOCAL_RANK=str(rank),
        RANK=str(rank),
        NODE_RANK="0",
        WORLD_SIZE=str(ranks),
    )
    log = (job.parent / f"rank{rank}.log").open("wb")
    with log:
        return subprocess.Popen(
            [sys.executable, "-m", "compressbench.engine.rank_process", str(job)],
            env=environment, stdout=log, stderr=log, start_new_session=True,
            stdin=subprocess.PIPE,  # closed when we die, which ends the rank
        )  # fmt: skip


def _watch(
    processes: list[subprocess.Popen[bytes]], scratch: Path, run_context: RunContext
) -> None:
    """Wait for all ranks and forward the progress of rank 0; raise when a rank fails or hangs."""
    seen, kills, watch = "", oom_kills(), RankWatch([p.pid for p in processes], scratch)
    while None in (codes := [p.poll() for p in processes]):
        if any(codes):
            time.sleep(POLL_SECONDS)  # the rank that failed first may not be the one seen first
            break
        watch.look()
        progress = scratch / "progress.json"
        text = progress.read_text() if progress.exists() else ""
        if text and text != seen:
            seen = text
            run_context.progress(*json.loads(text))
        time.sleep(POLL_SECONDS)
    failed = {r: code for r, p in enumerate(processes) if (code := p.poll()) not in (None, 0)}
    if failed:
        culprit = min(failed, key=lambda r: _precedence(failed[r]))
        if failed[culprit] == -signal.SIGKILL and oom_kills() > kills:
            raise OutOfMemoryError(f"out of memory: the kernel killed rank {culprit}; {ADVICE}")
        _raise(culprit, failed[culprit], scratch)


def _precedence(code: int) -> int:
    """Order of exit codes: a rank whose peer died also fails, but that failure is not the cause."""
    return 0 if code < 0 else 1 if code in (EXIT_USER, EXIT_CHECK) else 2


def _raise(rank: int, code: int, scratch: Path) -> None:
    lines = (scratch / f"rank{rank}.log").read_text(errors="replace").strip().splitlines()
    last = lines[-1] if lines else "no output"
    if code == EXIT_USER:
        raise UserError(last)
    if code == EXIT_CHECK:
        raise CheckFailedError(last)
    tail = "\n".join(lines[-30:])
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    if code < 0:
        raise TransientError(f"rank {rank} {how}; the other ranks were stopped ({last})")
    raise RuntimeError(f"rank {rank} {how}:\n{tail}")


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + GRACE_SECONDS
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, sign)
        while any(p.poll() is None for p in processes) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 4)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
