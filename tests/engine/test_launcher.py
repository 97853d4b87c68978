"""Several processes of a stage: the reason of a failure, and no rank without its run."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.engine.launcher import EXIT_BUG, EXIT_CHECK, EXIT_USER, _watch

FOR_EVER = "import time; time.sleep(60)"


def says(text, code):
    return f"import sys; print({text!r}, file=sys.stderr); sys.exit({code})"


def killed(number):
    return f"import os; os.kill(os.getpid(), {number})"


@pytest.mark.parametrize(
    ("scripts", "error", "message"),
    [
        ((FOR_EVER, says("a mistake", EXIT_USER)), UserError, "^a mistake$"),
        ((says("first\nlast", EXIT_CHECK), FOR_EVER), CheckFailedError, "^last$"),
        ((FOR_EVER, killed(9)), CheckFailedError, "rank 1 was killed by signal 9; the other ranks"),
        ((says("lost my peer", EXIT_BUG), killed(9)), CheckFailedError, "rank 1 was killed"),
        ((says("lost my peer", EXIT_BUG), says("why", EXIT_USER)), UserError, "^why$"),
        ((says("Traceback: 1/0", EXIT_BUG), FOR_EVER), RuntimeError, "exit code 170:\nTraceback"),
        ((says("SyntaxError", 1), FOR_EVER), RuntimeError, "rank 0 ended with exit code 1:\nSynt"),
        ((says("", 0), says("late", EXIT_USER)), UserError, "^late$"),
    ],
)
def test_the_reason_is_that_of_the_rank_that_failed_first(tmp_path, scripts, error, message):
    processes = []
    for rank, script in enumerate(scripts):
        with (tmp_path / f"rank{rank}.log").open("wb") as log:
            processes.append(subprocess.Popen([sys.executable, "-c", script], stderr=log))
    if FOR_EVER not in scripts:
        for process in processes:
            process.wait()
    try:
        with pytest.raises(error, match=message):
            _watch(processes, tmp_path, SimpleNamespace(progress=None))
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_rank_ends_with_the_run_that_started_it(tmp_path):
    script = (
        "import time; from compressbench.engine import rank_process as rank\n"
        "rank._run = lambda path: (print('runs', flush=True), time.sleep(60))\n"
        "rank.main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "job.json")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "RANK": "0"},
    )  # fmt: skip
    try:
        assert process.stdout.readline() == b"runs\n"
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=10) == EXIT_BUG
    finally:
        process.kill()
        process.stdout.close()
