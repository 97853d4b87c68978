"""Recognizes a full disk, whatever library reports it, and says it in one line."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressbench.core.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, limit of the process
# How libraries that are not written in Python put it; the first is torch.save's for any failure.
_TEXTS = (
    "PytorchStreamWriter failed",
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "database or disk is full",
    *(f"(os error {number})" for number in _FULL),
)


class DiskFullError(UserError, OSError):
    """There is no room for a file; nothing of it is kept.

    Also an OSError, with `errno`, for those who can do without the file.
    """

    def __init__(self, message: str, number: int = errno.ENOSPC) -> None:
        super().__init__(message)
        self.errno, self.strerror = number, message

    def __str__(self) -> str:
        return str(self.args[0])


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what caused it, says that disk, quota or a size limit is exhausted."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if isinstance(seen, Exception) and any(text in str(seen) for text in _TEXTS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def disk_full(
    error: BaseException, path: Path | None = None, needed_bytes: int | None = None
) -> DiskFullError:
    """The error for the user: where there is no room, how much is needed, how much is free.

    Without `path` that is the file that the error names, or else the fullest of the folders that a
    run writes to.
    """
    if isinstance(error, DiskFullError):
        return error
    number = error.errno if isinstance(error, OSError) and error.errno in _FULL else errno.ENOSPC
    named = getattr(error, "filename", None)
    if path is None:
        path = Path(os.fsdecode(named)) if isinstance(named, (str, bytes)) else _fullest()
    free = _free(path)
    needed = f"more than {free}" if needed_bytes is None else str(needed_bytes)
    return DiskFullError(
        f"{path}: {_reason(number)}: {needed} bytes needed, {free} free; make room, and the same "
        "command goes on",
        number,
    )


@contextmanager
def explained_when_full(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Raise DiskFullError about `path` for whatever the block raises because a disk is full.

    An error of a library that does not say why counts if there is less room than `needed_bytes`.
    """
    try:
        yield
    except Exception as error:
        if is_disk_full(error) or (needed_bytes is not None and _free(path) < needed_bytes):
            raise disk_full(error, path, needed_bytes) from error
        raise


def _reason(number: int) -> str:
    if number == errno.EFBIG:
        return "larger than this process may write (ulimit -f)"
    return "the quota is used up" if number == errno.EDQUOT else "the disk is full"


def _fullest() -> Path:
    """Of the folders that a run writes to, the one with the least room."""
    store = Path(os.environ.get("COMPRESSBENCH_STORE") or ".compressbench").absolute()
    folders = [
        Path(),
        Path("runs"),
        Path("sweeps"),
        store,
        Path(tempfile.gettempdir()),
        Path.home() / ".cache",
    ]
    return min((folder.absolute() for folder in folders), key=_free)


def _free(path: Path) -> int:
    """Bytes free on the file system of `path`, or of the nearest folder above that exists."""
    for folder in (path, *path.absolute().parents):
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return 0
