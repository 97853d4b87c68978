"""Cores, memory and shared memory: what this machine has, and what a container leaves of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressbench.cli.checks.finding import FINE, LOOK, Finding
from compressbench.core.formatting import bytes_text

_PROC, _CGROUP, _SHARED = Path("/proc"), Path("/sys/fs/cgroup"), Path("/dev/shm")
_LITTLE_MEMORY, _LITTLE_SHARED = 2 * 10**9, 64 * 2**20 + 1  # containers get 64 MiB by default
_NO_LIMIT = 2**60  # cgroup 1 writes a number of this size for "max"


def check(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Look at cores, memory and shared memory."""
    devices = settings["trainer"]["devices"]
    yield _cores(devices if isinstance(devices, int) and devices > 0 else 1)
    yield from _memory()
    yield from _shared_memory()


def _cores(devices: int) -> Finding:
    """What `trainer.threads: null` would be, and whether it is more than a quota allows."""
    usable = len(os.sched_getaffinity(0))
    threads, quota = max(1, usable // devices), _quota()
    found = f"{usable} of {os.cpu_count()} usable, so trainer.threads={threads}"
    if "OMP_NUM_THREADS" in os.environ:
        found += f" (whatever OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} says)"
    if quota is None or quota >= threads * devices:
        return Finding("cores", FINE, found)
    found += f", but the container may use {quota:g} cores only"
    fit = max(1, int(quota) // devices)
    return Finding("cores", LOOK, found, f"give trainer.threads={fit}: more threads are slower")


def _quota() -> float | None:
    """The cores that the cgroup allows, None without a limit."""
    for folder in _groups("cpu"):
        quota, period = _words(folder / "cpu.max", 2)  # cgroup 2
        if quota is None:
            (quota,), (period,) = (
                _words(folder / f"cpu.cfs_{name}_us", 1) for name in ("quota", "period")
            )
        if quota is not None and period and quota > 0:
            return quota / period
    return None


def _memory() -> Iterator[Finding]:
    free = {"this machine": _meminfo("MemAvailable"), "the container": _left_in_cgroup()}
    known = {place: size for place, size in free.items() if size is not None}
    if not known:
        return
    place, size = min(known.items(), key=lambda item: item[1])
    found = f"{bytes_text(size)} available in {place}"
    advice = "end other programs, or give a smaller batch_size: a run may be killed for memory"
    enough = size >= _LITTLE_MEMORY
    yield Finding("memory", FINE, found) if enough else Finding("memory", LOOK, found, advice)


def _meminfo(name: str) -> int | None:
    for line in _text(_PROC / "meminfo").splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None


def _left_in_cgroup() -> int | None:
    for folder in _groups("memory"):
        for limit, usage in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            (most,), (used,) = _words(folder / limit, 1), _words(folder / usage, 1)
            if most is not None and used is not None and most < _NO_LIMIT:
                return max(0, int(most - used))
    return None


def _shared_memory() -> Iterator[Finding]:
    if not _SHARED.is_dir():
        advice = "mount it: mount -t tmpfs tmpfs /dev/shm"
        yield Finding("shared memory", LOOK, f"there is no {_SHARED}, which GPU ranks need", advice)
        return
    disk = shutil.disk_usage(_SHARED)
    found = f"{bytes_text(disk.free)} of {bytes_text(disk.total)} free in {_SHARED}"
    advice = "for several GPUs: mount -o remount,size=1g /dev/shm, or docker run --shm-size=1g"
    enough = disk.free >= _LITTLE_SHARED
    yield Finding("shared memory", FINE if enough else LOOK, found, "" if enough else advice)


def _groups(controller: str) -> list[Path]:
    """The cgroup folders of this process: its own, then the root that a container sees."""
    found = []
    for line in _text(_PROC / "self" / "cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(",") or not names:
            base = _CGROUP / names if names else _CGROUP
            found += [base / path.lstrip("/"), base]
    return [*found, _CGROUP / controller, _CGROUP]


def _words(path: Path, count: int) -> list[float | None]:
    """The first numbers in a file; None for what is missing and for "max"."""
    words = [float(w) if w.lstrip("-").isdigit() else None for w in _text(path).split()]
    return [*words, *[None] * count][:count]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
