"""Limits on one exchange with MLflow, against servers that drip or send without end.

The timeouts of an HTTP library hold between two bytes, so one byte a second passes them for ever.
"""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_MORE_BYTES = 1 << 30  # what an answer may add to the memory
_AGAIN_SECONDS = 1.0  # the library may take the first interruption for a reason to try again


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`, and MemoryError if it needs too much.

    Does nothing outside of the main thread, the only one that signals interrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    memory = resource.getrlimit(resource.RLIMIT_DATA)
    handler = signal.signal(signal.SIGALRM, _on_alarm)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
    try:
        _limit_memory(memory)
        yield
    finally:  # an alarm that interrupts even this comes again after a second at the earliest
        signal.setitimer(signal.ITIMER_REAL, left, interval)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_DATA, memory)


def _on_alarm(number: int, frame: FrameType | None) -> None:
    raise TimeoutError("it took too long to answer")


def _limit_memory(before: tuple[int, int]) -> None:
    """Lower the limit of this process, on Linux, whose kernel says what it has now."""
    pages = Path("/proc/self/statm")
    if not pages.exists():
        return
    now = int(pages.read_text().split()[5]) * resource.getpagesize()
    soft, hard = before
    wanted = now + _MORE_BYTES
    if soft == resource.RLIM_INFINITY or wanted < soft:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
