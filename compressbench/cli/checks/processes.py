"""Runs checks in processes of their own, so that one that crashes or hangs is a finding."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from compressbench.cli.checks.child import END
from compressbench.cli.checks.finding import BROKEN, LOOK, Finding

_CODE = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from compressbench.cli.checks.child import main; main(sys.argv[2])"
)
_ROOT = Path(__file__).parents[3]
_OUTSIDE = ("folders", "store", "tracking", "storage")  # what hangs is what they ask
_GRACE_SECONDS = 0.5  # for a check that is late to remove its temporary files
_LATE = "a disk or server that it asks hangs, or the machine is too busy: run it again"
_FAILED = "install anew what the message names: pip install --force-reinstall NAME"


def run_checks(
    checks: Sequence[str], settings: Mapping[str, Any], end: float
) -> dict[str, list[Finding]]:
    """The findings of several checks, which run side by side until `end` (monotonic seconds)."""
    running: list[_Running] = []
    try:
        for check in checks:
            running.append(_Running(check, settings))
        late = {one.check for one in running if not one.ended(end)}
    finally:
        _stop(running)
    return {one.check: one.findings(one.check in late) for one in running}


class _Running:
    """The process of a check."""

    def __init__(self, check: str, settings: Mapping[str, Any]) -> None:
        self.check = check
        self._answers, self._messages = _file(), _file()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _CODE, str(_ROOT), check],
            stdin=subprocess.PIPE, stdout=self._answers, stderr=self._messages,
            start_new_session=True,  # what it starts ends with it
        )  # fmt: skip
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as stdin:  # others can read argv
            stdin.write(json.dumps(settings).encode())

    def ended(self, end: float) -> bool:
        """Whether it ends before `end`."""
        try:
            self._process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def findings(self, late: bool) -> list[Finding]:
        """What it found before it ended; the last finding says if it did not end well."""
        lines = _text(self._answers).split("\n")[:-1]  # what follows the last is not complete
        ended = lines[-1:] == [END]
        found = [Finding(**json.loads(line)) for line in (lines[:-1] if ended else lines)]
        code = self._process.returncode
        if late:
            mark = BROKEN if self.check in _OUTSIDE else LOOK
            return [*found, Finding(self.check, mark, "no answer in time", _LATE)]
        if ended:
            return found
        how = f"ended by a signal ({signal.strsignal(-code)})" if code < 0 else "failed"
        message = _text(self._messages).strip().rpartition("\n")[2].strip()[:300] or "no message"
        return [*found, Finding(self.check, BROKEN, f"{how}: {message}", _FAILED)]


def _stop(running: Iterable[_Running]) -> None:
    """End what has not ended: asked first, then killed."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        left = [one for one in running if not one.ended(0)]
        for one in left:
            one.signal(number)
        end = time.monotonic() + _GRACE_SECONDS
        for one in left:
            one.ended(end)


def _file() -> IO[bytes]:
    """A file in memory: no disk can be full, and no pipe."""
    return os.fdopen(os.memfd_create("compressbench-doctor"), "w+b")


def _text(file: IO[bytes]) -> str:
    """What another process has written into a file."""
    file.seek(0)
    return file.read().decode(errors="replace")
