"""Atomic publication: a folder appears whole under its name, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressbench.core.atomic import sync
from compressbench.core.errors import UserError
from compressbench.store.manifest import MANIFEST, regular_files

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, limit of the process
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY)


def publish(temporary: Path, target: Path, manifest: bytes) -> bool:
    """Make `temporary` durable and rename it to `target`; False when `target` was there already.

    Order: files, the manifest, their folders, the rename, the folder above. A kill at any point
    leaves `target` absent or complete.
    """
    for path in regular_files(temporary):
        sync(path)
    with (temporary / MANIFEST).open("xb") as file:
        file.write(manifest)
    sync(temporary / MANIFEST)
    for path in temporary.rglob("*"):
        if path.is_dir():
            sync(path)
    sync(temporary)
    target.parent.mkdir(parents=True, exist_ok=True)
    sync(target.parent.parent)
    try:
        os.rename(temporary, target)  # noqa: PTH104 - refuses a folder that holds files
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    sync(target.parent)
    return True


def is_disk_full(error: BaseException) -> bool:
    """Also of a writer in Rust (safetensors), which says the number in words."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(f"(os error {number})" in str(error) for number in _FULL)


def disk_full(root: Path, folder: Path, error: BaseException) -> UserError:
    """What to tell the user when `folder`, below `root`, did not fit."""
    free = shutil.disk_usage(root).free
    limited = isinstance(error, OSError) and error.errno == errno.EFBIG
    had = tree_bytes(folder) + (0 if limited else free)  # some writers remove what did not fit
    return UserError(
        f"the store {root} is full: this entry needs more than {had} bytes, {free} are free; "
        "make room (compressbench store collect) or point COMPRESSBENCH_STORE elsewhere"
    )


def tree_bytes(folder: Path) -> int:
    """The sum of the sizes of the files below a folder."""
    return sum(p.lstat().st_size for p in folder.rglob("*") if p.is_symlink() or p.is_file())


@contextmanager
def writing(root: Path, folder: Path | None = None) -> Iterator[None]:
    """Turn a failure of our own work below `root` into one line for the user."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise disk_full(root, folder or root / "none", error) from error
        raise UserError(
            f"the store {root} cannot be used: {error.strerror or error} "
            f"({error.filename or root}); point COMPRESSBENCH_STORE to a folder that can"
        ) from error
