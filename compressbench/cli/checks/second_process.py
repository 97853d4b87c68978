"""What a second process sees of locks and renames in a folder."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from filelock import FileLock, Timeout

_RENAMES, _SIZE = 100, 20_000
_RELEASE_SECONDS, _LONG_SECONDS = 3.0, 60.0
_PROCESSES = multiprocessing.get_context("fork")  # starts in milliseconds


def lock_problem(folder: Path) -> str:
    """What is wrong with locks in `folder`, or ""."""
    path = folder / "lock"
    if not _is_free(path):
        return "a file cannot be locked"
    with FileLock(path):
        if _is_free(path):
            return "a second process gets a lock that is held"
    holder, ready = _started(_hold, path)
    held = ready.poll(_RELEASE_SECONDS) and ready.recv()
    holder.kill()
    holder.join()
    if not held:
        return "a released lock stays locked"
    try:
        FileLock(path).acquire(timeout=_RELEASE_SECONDS).lock.release()
    except (Timeout, OSError):
        return "a lock stays when its holder is killed"
    return ""


def rename_problem(folder: Path) -> str:
    """What is wrong with the replacing of files in `folder`, or ""."""
    path = folder / "renamed"
    path.write_bytes(_content(0))
    writer, ended = _started(_rename, path)
    problem = _seen(path, ended)
    if problem:
        writer.kill()
    writer.join()
    failed = "" if writer.exitcode == 0 else "a second process cannot replace a file"
    return problem or failed


def _seen(path: Path, ended: Connection) -> str:
    """Read a file until its writer ends; what is wrong with what was read, or ""."""
    whole = {_content(0), _content(1)}
    while not ended.poll():
        try:
            if path.read_bytes() not in whole:
                return "a file that another process replaces is read in parts"
        except FileNotFoundError:
            return "a file is missing while another process replaces it"
    return ""


def _is_free(path: Path) -> bool:
    """Whether a second process gets the lock at once."""
    process, answer = _started(_acquire, path)
    process.join()
    return bool(answer.poll() and answer.recv())


def _started(
    action: Callable[[Path, Connection], None], path: Path
) -> tuple[BaseProcess, Connection]:
    here, there = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=action, args=(path, there))
    process.start()
    there.close()
    return process, here


def _acquire(path: Path, answer: Connection) -> None:
    try:
        with FileLock(path, timeout=0):
            answer.send(True)
    except (Timeout, OSError):
        answer.send(False)


def _hold(path: Path, answer: Connection) -> None:
    with FileLock(path, timeout=_RELEASE_SECONDS):
        answer.send(True)
        time.sleep(_LONG_SECONDS)


def _rename(path: Path, answer: Connection) -> None:
    for number in range(_RENAMES):
        following = path.with_name("following")
        following.write_bytes(_content(number % 2))
        following.replace(path)


def _content(number: int) -> bytes:
    return bytes([number]) * _SIZE
