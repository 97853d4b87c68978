"""Names for processes that can be told alive from dead later, also after their id is reused."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from compressbench.core.digests import digest

FOREIGN_SECONDS = 24 * 3600.0  # how long a process that cannot be looked up counts as alive


def process_token() -> str:
    """`<machine>-<pid>-<start time>` of this process."""
    pid = os.getpid()
    return f"{_machine()}-{pid}-{_start_time(pid) or 0}"


def is_alive(token: str, age_seconds: float) -> bool:
    """Whether the process of a token still runs.

    One of another machine (or container, or boot) cannot be looked up: it counts as alive while
    what it left is younger than a day. Anything that is no token has no owner.
    """
    machine, _, rest = token.partition("-")
    pid, _, start = rest.partition("-")
    if not (pid.isdigit() and start.isdigit()):
        return False
    if machine != _machine():
        return age_seconds < FOREIGN_SECONDS
    return _runs(int(pid)) and (start == "0" or _start_time(int(pid)) == int(start))


def _machine() -> str:
    """Host, boot and process-id namespace: within one of them a pid means one process."""
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
        return True  # another user's
    return True


def _start_time(pid: int) -> int | None:
    """Start in clock ticks since boot; None where the system does not say or it has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
    return None if fields[0] in "ZX" else int(fields[19])
