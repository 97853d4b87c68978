"""Whole commands in processes that are forked from one that has every library already.

So a run that is killed costs a second instead of the six that torch and Hydra take to be imported.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from compressbench.core.kill_points import VARIABLE

PRELOADED = "tests.faults.preloaded"
_SECONDS = 240


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (-9 for one that was killed), and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Forked:
    """A command that runs in `folder`, in a process group of its own."""

    process: ForkServerProcess
    folder: Path

    @property
    def said(self) -> str:
        return (self.folder / "out").read_text() + (self.folder / "err").read_text()

    def wait(self) -> Ended:
        self.process.join(_SECONDS)
        self.kill()
        code = self.process.exitcode
        assert code is not None
        return Ended(code, (self.folder / "out").read_text(), (self.folder / "err").read_text())

    def kill(self) -> None:
        """The process, and the workers that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid or 0, signal.SIGKILL)
        self.process.kill()
        self.process.join()


def start(arguments: Sequence[str], folder: Path, store: Path, **environment: str) -> Forked:
    """Start `compressbench ARGUMENTS` in `folder`; a sweep has its workers forked, too."""
    multiprocessing.set_forkserver_preload([PRELOADED])
    for name in ("out", "err"):
        (folder / name).write_text("")
    more = {"COMPRESSBENCH_STORE": str(store), **environment}
    process = multiprocessing.get_context("forkserver").Process(
        target=_child, args=(list(arguments), str(folder), more)
    )
    process.start()
    return Forked(process, folder)


def run(arguments: Sequence[str], folder: Path, store: Path, **environment: str) -> Ended:
    return start(arguments, folder, store, **environment).wait()


def killed_at(
    point: str, count: int, arguments: Sequence[str], folder: Path, store: Path
) -> tuple[Ended, bool]:
    """Run a command that is killed at a point, when it comes there for the `count`-th time; how it
    ended, and whether it came there.
    """
    token = folder / "kill"
    token.touch()
    ended = run(arguments, folder, store, **{VARIABLE: f"{point}:{count}:{token}"})
    reached = not token.exists()
    token.unlink(missing_ok=True)
    return ended, reached


def _child(arguments: list[str], folder: str, environment: dict[str, str]) -> None:
    os.setpgid(0, 0)
    if "IGNORE_SIGHUP" in environment:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_APPEND), number)
    from tests.faults.preloaded import command

    command(arguments, folder, environment)
