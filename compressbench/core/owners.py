"""Checks who can write to a store: what is read from it is trusted.

Trusted are this process's user, root, and the users that COMPRESSBENCH_TRUSTED_OWNERS names. A
store that its group may write is shared on purpose with all of the group, if this user is in it.
In a folder with the sticky bit (as /tmp has) everyone may add files, but nobody replaces another's:
their owners are checked.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from compressbench.core.errors import UserError

VARIABLE = "COMPRESSBENCH_TRUSTED_OWNERS"
_ROOT = 0


def check_writers(root: Path, *below: Path) -> None:
    """Raise UserError if a user who is not trusted owns or may write a store, or what is below it.

    What does not exist is fine: it will be made by this user.
    """
    if not hasattr(os, "getuid") or not os.path.exists(root):  # noqa: PTH110 - never raises
        return
    shared = _check(root, root.stat(), root)
    for path in below:
        with suppress(FileNotFoundError, NotADirectoryError):
            _check(path, path.lstat(), root, shared)


def check_entry(root: Path, folder: Path) -> None:
    """`check_writers` for the folder of an entry, the folders around it, and its files."""
    inside: list[Path] = []
    with suppress(OSError):  # what cannot be opened is found to be damaged
        inside = sorted(folder.iterdir())
    check_writers(root, folder.parents[1], folder.parent, folder, *inside)


def _check(path: Path, status: os.stat_result, root: Path, shared: bool = False) -> bool:
    """Raise UserError unless a path can be trusted; return whether its group shares it."""
    open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
    if open_to_all and not stat.S_ISLNK(status.st_mode):
        raise UserError(
            f"{path} in the store {root} can be written by every user of this machine: run "
            f"chmod -R o-w {root}, or set COMPRESSBENCH_STORE to another folder"
        )
    groups = {os.getegid(), *os.getgroups()}
    ours = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) == stat.S_IWGRP
    ours = ours and status.st_gid in groups
    if not (shared or ours or _is_trusted(status)):
        raise UserError(
            f"{path} in the store {root} belongs to user {status.st_uid}, not to you "
            f"({os.getuid()}): set COMPRESSBENCH_STORE to a folder of yours, share it with a group "
            f"of yours (chmod g+w), or set {VARIABLE}={status.st_uid} if you trust that user"
        )
    return ours


def _is_trusted(status: os.stat_result) -> bool:
    return status.st_uid in {os.getuid(), os.geteuid(), _ROOT, *_named()}


def _named() -> set[int]:
    """The user ids in the variable. Raises UserError for what is none."""
    text = os.environ.get(VARIABLE, "")
    try:
        return {int(part) for part in text.split(",") if part.strip()}
    except ValueError:
        raise UserError(f"{VARIABLE} must be user ids such as 1000,1001, got {text!r}") from None
