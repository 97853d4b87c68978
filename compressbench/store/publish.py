"""Publishes a folder atomically: it appears complete under its name, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from compressbench.core.atomic import sync
from compressbench.core.disk_full import DiskFullError, is_disk_full
from compressbench.core.errors import UserError
from compressbench.core.kill_points import reached
from compressbench.store.manifest import MANIFEST, regular_files

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


def publish(temporary: Path, target: Path, manifest: bytes) -> bool:
    """Flush `temporary` to disk and rename it to `target`; return False if `target` exists.

    Order of the flushes: files, manifest, their folders, then (after the rename) the parent folder.
    If the process is killed at any point, `target` is either absent or complete.
    """
    reached("publish.begun")
    for path in regular_files(temporary):
        sync(path)
    reached("publish.files_synced")
    with (temporary / MANIFEST).open("xb") as file:
        file.write(manifest)
    sync(temporary / MANIFEST)
    reached("publish.manifest_written")
    for path in temporary.rglob("*"):
        if path.is_dir():
            sync(path)
    sync(temporary)
    target.parent.mkdir(parents=True, exist_ok=True)
    sync(target.parent.parent)
    reached("publish.before_rename")
    try:
        os.rename(temporary, target)  # noqa: PTH104 - refuses a folder that holds files
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    reached("publish.renamed")
    sync(target.parent)
    reached("publish.done")
    return True


def store_full(root: Path, folder: Path, error: BaseException) -> DiskFullError:
    """The error for the user if `folder` does not fit into the store at `root`."""
    if isinstance(error, DiskFullError):  # of another folder
        return error
    free = shutil.disk_usage(root).free
    limited = isinstance(error, OSError) and error.errno == errno.EFBIG
    had = tree_bytes(folder) + (0 if limited else free)  # some writers delete their partial file
    return DiskFullError(
        f"the store {root} is full: this entry needs more than {had} bytes, {free} are free; "
        "free space (compressbench store collect) or set COMPRESSBENCH_STORE to another folder"
    )


def checked_root(root: Path) -> Path:
    """`root`. Raises UserError for a path that the system refuses, such as too long a name."""
    with writing(root), suppress(FileNotFoundError, NotADirectoryError):
        root.lstat()
    return root


def tree_bytes(folder: Path) -> int:
    """Total size of all files in a folder tree."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_symlink() or p.is_file())


@contextmanager
def writing(root: Path, folder: Path | None = None) -> Iterator[None]:
    """Turn an OSError in the block into a UserError about the store at `root`."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise store_full(root, folder or root / "none", error) from error
        raise UserError(
            f"the store {root} cannot be used: {error.strerror or error} "
            f"({error.filename or root}); set COMPRESSBENCH_STORE to a writable folder"
        ) from error
