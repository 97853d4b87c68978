"""Work that is killed again and again, in processes forked from one that has torch already."""

from __future__ import annotations

import math
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compressbench.core import journal
from compressbench.core.records import Records


@dataclass(frozen=True)
class Ended:
    """What was finished in all lives together, and how many lives that took."""

    units: list[str]
    lives: int


def until_ended(work: Callable[[], None], folder: Path, every: int = 0, most: int = 60) -> Ended:
    """Call `work` in new processes until one comes to its end; 0: the first one does.

    A process is killed (-9) when it has finished `every` units, the last of which it has not kept.
    A unit is a measurement, or a batch of a pass: every batch is kept.
    """
    log = folder / "units.txt"
    log.touch()
    for life in range(1, most + 1):
        child = os.fork()
        if child == 0:
            _live(work, log, every)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            continue
        assert os.WEXITSTATUS(status) == 0, (folder / "error.txt").read_text()
        return Ended(log.read_text().splitlines(), life)
    raise AssertionError(f"not ended after {most} lives: {log.read_text()}")


def _live(work: Callable[[], None], log: Path, every: int) -> None:
    """Never returns."""
    try:
        _kill_at(log, every)
        work()
    except BaseException:  # noqa: BLE001 - for the parent
        (log.parent / "error.txt").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def _kill_at(log: Path, every: int) -> None:
    finished = 0
    append, save = Records.append, journal._save

    def count(name: str) -> None:
        nonlocal finished
        with log.open("a") as file:
            file.write(f"{name}\n")
        finished += 1
        if finished == every:
            os.kill(os.getpid(), signal.SIGKILL)

    def append_(self: Records, name: str, value: object) -> None:
        count(name)
        append(self, name, value)

    def save_(path: Path, done: int, state: dict) -> None:
        count(f"{path.name} {done}")
        save(path, done, state)

    Records.append, journal._save = append_, save_
    journal.SAVE_SECONDS = journal.LEAST_SECONDS = 0.0
    journal.BYTES_PER_SECOND = math.inf
