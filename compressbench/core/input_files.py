"""Opens files that a user names: regular files of a sane size.

A pipe has no end, a link may lead to a device without one, and a sparse file may hold terabytes.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from compressbench.core.errors import UserError
from compressbench.core.formatting import bytes_text

MOST_BYTES = 10**11  # of data and weights, which are read piece by piece
MOST_TEXT_BYTES = 10**9  # of JSON, which is read as a whole
MOST_SHOWN = 1000  # letters of a path in a message
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def input_file(path: str | Path, name: str = "", most_bytes: int = MOST_BYTES) -> Path:
    """The path of a regular file of at most `most_bytes`, with `~` expanded.

    `name` is that of the option for the message. Raises UserError for anything else, without
    opening it.
    """
    path = Path(path).expanduser()
    text = str(path) if len(str(path)) < MOST_SHOWN else f"{str(path)[:MOST_SHOWN]}…"
    where = f"{name}={text}" if name else text
    try:
        check_status(path.stat(), where, most_bytes)
    except FileNotFoundError:
        raise UserError(f"{where}: no such file") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a zero byte
        raise UserError(f"{where!r}: not a path: {error}") from error
    return path


def exists(path: Path) -> bool:
    """Whether there is anything at `path`, if only a broken link; False for an impossible path."""
    try:
        return os.path.lexists(path)
    except ValueError:  # a zero byte
        return False


def open_input(path: Path, most_bytes: int = MOST_BYTES) -> BinaryIO:
    """Open a regular file of at most `most_bytes` for reading.

    It is checked after it was opened, so that nothing can take its place in between. Raises
    UserError for another kind of file, OSError for one that cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe does not wait
    try:
        check_status(os.fstat(descriptor), str(path), most_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_input(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """The content of a file that `open_input` accepts."""
    with open_input(path, most_bytes) as file:
        return file.read()


def check_status(status: os.stat_result, where: str, most_bytes: int = MOST_BYTES) -> None:
    """Raise UserError for what is not a regular file, or larger than `most_bytes`."""
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise UserError(f"{where}: must be a regular file, but is {kind}")
    if status.st_size > most_bytes:
        raise UserError(
            f"{where}: has {bytes_text(status.st_size)}, at most {bytes_text(most_bytes)} are read"
        )
