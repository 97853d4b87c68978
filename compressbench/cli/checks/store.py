"""The store's filesystem, tried with a second process, and who may write to the store."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressbench.cli.checks.finding import BROKEN, FINE, LOOK, Finding
from compressbench.cli.checks.folders import existing
from compressbench.cli.checks.second_process import lock_problem, rename_problem
from compressbench.core.atomic import sync
from compressbench.store.entries import Store

_ELSEWHERE = "set COMPRESSBENCH_STORE to a folder on a local disk"
_OF_NETWORKS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "glusterfs", "gpfs",
                "beegfs", "afs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.gcsfuse",
                "fuse.rclone", "virtiofs", "drvfs"}  # fmt: skip
_CLOCK_SECONDS = 2.0


def check(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Lock, rename, replace and flush in a folder of its own, which is removed."""
    root = Store.default().root
    place = existing(root)
    yield _filesystem(place)
    yield _writers(place, there=place == root)
    try:
        with tempfile.TemporaryDirectory(prefix=".compressbench-doctor-", dir=place) as folder:
            yield from _tried(Path(folder))
    except OSError as error:
        yield Finding("store", BROKEN, f"{place}: {error.strerror or error}", _ELSEWHERE)


def _tried(folder: Path) -> Iterator[Finding]:
    for subject, problem, fine in (
        ("locks", lock_problem(folder), "exclude a second process, and end with their holder"),
        ("renames", rename_problem(folder), "atomic for a second process"),
        ("folders", _folder_problem(folder), "are renamed whole, and replace no other"),
        ("open files", _open_file_problem(folder), "keep their content when they are replaced"),
    ):
        if problem:
            yield Finding(subject, BROKEN, problem, _ELSEWHERE)
        else:
            yield Finding(subject, FINE, fine)
    yield _stamps(folder)


def _folder_problem(folder: Path) -> str:
    """Entries are published by renaming a folder, which must not replace one that holds files."""
    for name in ("new", "old"):
        (folder / name).mkdir()
        (folder / name / "file").write_text(name)
        sync(folder / name)
    try:
        os.rename(folder / "new", folder / "old")  # noqa: PTH104 - as the store does
    except OSError:
        pass
    else:
        return "a renamed folder replaces one that holds files"
    os.rename(folder / "new", folder / "other")  # noqa: PTH104
    sync(folder)
    return (
        "" if (folder / "other" / "file").read_text() == "new" else "a renamed folder lost a file"
    )


def _open_file_problem(folder: Path) -> str:
    path = folder / "read"
    path.write_text("old")
    with path.open() as file:
        (folder / "next").write_text("new")
        (folder / "next").replace(path)
        return "" if file.read() == "old" else "a file that is being read changes"


def _stamps(folder: Path) -> Finding:
    """Owner and time of a new file: a server may give it others."""
    found = (folder / "read").stat()
    seconds = abs(found.st_mtime - time.time())
    if found.st_uid != os.geteuid():
        text = f"new files belong to user {found.st_uid} and not to {os.geteuid()}"
        return Finding("new files", LOOK, text, _ELSEWHERE)
    if seconds > _CLOCK_SECONDS:
        text = f"the clock of the disk's server differs by {seconds:.0f} s"
        return Finding("new files", LOOK, text, "let both machines set their clocks by NTP")
    if (folder / "READ").exists():
        text = "READ and read are one file, so names that differ by case alone collide"
        return Finding("new files", LOOK, text, _ELSEWHERE)
    return Finding("new files", FINE, "have the right owner and time")


def _filesystem(place: Path) -> Finding:
    """Its type: locks of a network filesystem and SQLite on it depend on the server."""
    kind = _kind(place)
    if kind in _OF_NETWORKS:
        found = f"{kind}, a network filesystem: SQLite and locks may fail between machines"
        advice = f"{_ELSEWHERE}; sweeps of several machines: search.storage=postgresql://..."
        return Finding("filesystem", LOOK, found, advice)
    return Finding("filesystem", FINE, kind or "of unknown type")


def _kind(place: Path) -> str:
    """The type of the filesystem that holds `place`, as /proc names it, or ""."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return ""
    real, kinds = place.resolve(), {}
    for line in lines:
        mounted, _, source = line.partition(" - ")
        point = Path(mounted.split()[4].replace("\\040", " "))
        if real.is_relative_to(point):
            kinds[point] = source.split()[0]  # the last mount at a point hides the others
    return kinds[max(kinds, key=lambda point: len(point.parts))] if kinds else ""


def _writers(folder: Path, there: bool) -> Finding:
    """Whoever can write to the store can replace results (see SECURITY.md)."""
    problems = [text for path in _parts(folder) if (text := _open_to_others(path, there))]
    if not problems:
        who = "you alone write to it" if there else "does not exist yet"
        return Finding("permissions", FINE, who)
    advice = f"chmod -R go-w {folder}" if there else _ELSEWHERE
    if "belongs" in problems[0]:
        advice = f"chown -R {os.geteuid()} {folder}, or {_ELSEWHERE}"
    return Finding("permissions", LOOK, problems[0], advice)


def _parts(folder: Path) -> list[Path]:
    names = ("", "entries", "tmp", "locks", "pins", "quarantine")
    return [folder / name for name in names if (folder / name).is_dir()]


def _open_to_others(path: Path, there: bool) -> str:
    found = path.stat()
    if there and found.st_uid != os.geteuid():
        return f"{path} belongs to user {found.st_uid} and not to you"
    shared = not there and found.st_mode & stat.S_ISVTX  # such as /tmp: what is made there is safe
    if found.st_mode & stat.S_IWOTH and not shared:
        return f"every user may write to {path}"
    if there and found.st_mode & stat.S_IWGRP:
        return f"the group {found.st_gid} may write to {path}"
    return ""
