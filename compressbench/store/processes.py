"""Identifies processes so that others can tell whether they still run, even if an id is reused."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path

from compressbench.core.digests import digest

FOREIGN_SECONDS = 24 * 3600.0  # how long a process of another machine is assumed to be alive


def process_token() -> str:
    """`<machine>-<pid>-<start time>` of this process."""
    pid = os.getpid()
    return f"{_machine()}-{pid}-{_start_time(pid) or 0}"


def token_of(pid: int) -> str:
    """The beginning of the token of a process of this machine, which may have ended."""
    return f"{_machine()}-{pid}-"


def is_alive(token: str, age_seconds: float) -> bool:
    """Whether the process of a token still runs.

    A process of another machine, container or boot cannot be looked up: it is assumed to be alive
    while its file, of age `age_seconds`, is younger than a day. False for a malformed token.
    """
    machine, _, rest = token.partition("-")
    pid, _, start = rest.partition("-")
    if not (pid.isdigit() and start.isdigit()):
        return False
    if machine != _machine():
        return age_seconds < FOREIGN_SECONDS
    return _runs(int(pid)) and (start == "0" or _start_time(int(pid)) == int(start))


def is_abandoned(build: Path) -> bool:
    """Whether the process that created `tmp/build-<key>-<process>-<random>` has ended."""
    token = build.name.split("-", 2)[-1].rpartition("-")[0]
    try:
        age = time.time() - build.stat().st_mtime
    except FileNotFoundError:
        return False
    return not is_alive(token, age)


def _machine() -> str:
    """Digest of host, boot and pid namespace, within which a pid identifies a process."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    known = [
        platform.node(),
        boot.read_text() if boot.exists() else "",
        str(namespace.readlink()) if namespace.is_symlink() else "",
    ]
    return digest(["\n".join(known)])[:12]


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it belongs to another user
    return True


def is_stopped(pid: int) -> bool:
    """Whether a process is held by SIGSTOP or by a debugger; False where that is unknown."""
    return _fields(pid)[:1] in (["T"], ["t"])


def cpu_ticks(pid: int) -> int | None:
    """CPU time that a process has used, in clock ticks; None where that is unknown."""
    fields = _fields(pid)
    return int(fields[11]) + int(fields[12]) if fields else None


def _start_time(pid: int) -> int | None:
    """Start time in clock ticks since boot; None if unknown or if the process has ended."""
    fields = _fields(pid)
    return None if not fields or fields[0] in "ZX" else int(fields[19])


def _fields(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on; empty where it says nothing."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return stat.rpartition(")")[2].split()  # the command before ")" may contain spaces
