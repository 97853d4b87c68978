"""Ends a process in good order when a signal asks for it: once, by an exception."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
REPEAT_SECONDS = 10.0  # a signal that comes later than this after the first one ends at once
LAST_SECONDS = 60.0  # how long the end may take that a signal asked for
_AGAIN_SECONDS = 0.05


class SignalledError(BaseException):
    """A signal asked us to stop. Not an Exception, so that no handler on the way swallows it.

    `finished` says what has been finished, "" for nothing worth saying.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number, self.finished = number, ""

    def __str__(self) -> str:
        done = f", {self.finished}" if self.finished else ""
        name = signal.Signals(self.number).name
        return f"interrupted ({name}){done}: run the same command to resume"


class Stopping:
    """The answer to signals: the first raises SignalledError in the main thread.

    The next ones come while that ends the process, as when a key is pressed twice: they are
    ignored, and later ones end the process at once. So does an end that takes too long.
    """

    def __init__(self) -> None:
        self.since: float | None = None
        self.number = 0  # of the signal that asked for the end
        self.last: threading.Timer | None = None
        self.code: int | None = None
        self.hook = sys.unraisablehook

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.code is not None:
            os._exit(self.code)
        if self.since is None:
            self.since, self.number = time.monotonic(), number
            self.last = threading.Timer(LAST_SECONDS, self._end, [number])
            self.last.daemon = True
            self.last.start()
            raise SignalledError(number)
        if time.monotonic() > self.since + REPEAT_SECONDS:
            self._end(number)

    def ended(self, code: int) -> None:
        """All is done but for the end of Python: from here on a signal ends it with `code`."""
        self.code = code
        sys.unraisablehook = self.hook
        if self.last is not None:
            self.last.cancel()

    def again(self, number: int) -> None:
        """Repeat a signal whose exception was lost."""
        self.since, self.number = None, 0
        if self.last is not None:
            self.last.cancel()
        threading.Timer(_AGAIN_SECONDS, os.kill, [os.getpid(), number]).start()

    def _end(self, number: int) -> None:
        os.write(2, f"\ncompressbench: {SignalledError(number)}\n".encode())
        os._exit(128 + number)


_answers: list[Stopping] = []  # the one of this process


def stop_on_signals() -> Stopping:
    """Have signals raise SignalledError from here on; what `nohup` ignores stays ignored."""
    stopping = Stopping()
    _answers[:] = [stopping]

    def unraisable(lost: Any) -> None:
        if isinstance(lost.exc_value, SignalledError):  # raised in a destructor or a callback
            stopping.again(lost.exc_value.number)
        else:
            stopping.hook(lost)

    sys.unraisablehook = unraisable
    for number in STOPPING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stopping)
    return stopping


def leave_to_parent() -> None:
    """Ignore signals that a terminal or a scheduler sends to all processes: the parent decides."""
    for number in STOPPING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


def behind(error: BaseException | None) -> SignalledError | None:
    """The signal that an error stands for, if there was one: a library may turn it into another
    error, or fail later of what it interrupted, such as a half-done import.
    """
    while error is not None and not isinstance(error, SignalledError):
        error = error.__cause__ or error.__context__
    if error is None and _answers and _answers[0].number:
        return SignalledError(_answers[0].number)
    return error
