"""Notices ranks that do not go on: one that is stopped, or all of them waiting for ever.

A rank may wait for minutes for another that works: for the first one to export or to measure, for
example. So what is looked at is the processor time of all: as long as any rank computes, the stage
goes on. Ranks that hang and compute, as in an endless loop, are left to the time limit of the
process group.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from compressbench.core.errors import CheckFailedError
from compressbench.store.processes import cpu_ticks, is_stopped

STOPPED_SECONDS = 60.0  # how long a rank may be stopped, as for a backup or by hand
IDLE_SECONDS = 90.0  # how long no rank may compute
STACK_SIGNAL = signal.SIGUSR1  # a rank writes where it is into STACK, whatever it does
STACK = "rank{}.stack"
_LEAST_TICKS = 25  # of a rank that computes; threads that only wait use 8 in that time
_LONGEST_STEP = 1.0  # of time between two looks: when we are stopped ourselves, nothing counts
_STACK_SECONDS = 1.0


@dataclass
class RankWatch:
    """Looks at the processes of a stage; `scratch` is where they write their stacks."""

    pids: Sequence[int]
    scratch: Path
    stopped: dict[int, float] = field(default_factory=dict)  # rank -> seconds
    idle: float = 0.0
    ticks: int = -1
    looked: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Raise CheckFailedError if the ranks do not go on."""
        now = time.monotonic()
        seconds, self.looked = min(now - self.looked, _LONGEST_STEP), now
        for rank, pid in enumerate(self.pids):
            before = self.stopped.get(rank, 0.0)
            self.stopped[rank] = before + seconds if is_stopped(pid) else 0.0
            if self.stopped[rank] >= STOPPED_SECONDS:
                raise CheckFailedError(
                    f"rank {rank} is stopped (SIGSTOP) since {_ago(self.stopped[rank])}; all ranks "
                    "were ended: run the same command to resume"
                )
        self._look_at_work(seconds)

    def _look_at_work(self, seconds: float) -> None:
        used = [ticks for pid in self.pids if (ticks := cpu_ticks(pid)) is not None]
        if sum(used) > self.ticks + _LEAST_TICKS * len(used) or not used:
            self.ticks, self.idle = sum(used), 0.0
            return
        self.idle += seconds
        if self.idle >= IDLE_SECONDS:
            raise CheckFailedError(
                f"no rank computes since {_ago(self.idle)}: {self._places()}; all ranks were "
                "ended: run the same command to resume"
            )

    def _places(self) -> str:
        """Where in the code each rank is."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.kill(pid, STACK_SIGNAL)
        time.sleep(_STACK_SECONDS)
        found = [place(self.scratch / STACK.format(rank)) for rank in range(len(self.pids))]
        return ", ".join(f"rank {rank} is {text}" for rank, text in enumerate(found))


def place(stack: Path) -> str:
    """The innermost call of the main thread, the last of the threads that `faulthandler` writes."""
    text = stack.read_text(errors="replace") if stack.is_file() else ""
    main = re.split(r"^(?:Current thread|Thread) .*$", text, flags=re.M)[-1]
    line = re.search(r'File "(.*)", line (\d+) in (\S+)', main)
    if line is None:
        return "somewhere outside of Python"
    return f"in {line[3]} at {Path(line[1]).name}:{line[2]}"


def _ago(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(time.time() - seconds))
