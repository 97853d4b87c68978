"""Atomic writes: after a kill or on a full disk, a file has its old or its new content."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from compressbench.core.disk_full import disk_full, is_disk_full
from compressbench.core.kill_points import reached


@contextmanager
def atomic_path(
    path: Path, previous: Path | None = None, needed_bytes: int | None = None
) -> Iterator[Path]:
    """Yield a temporary path for the block to write; afterwards rename it to `path`.

    The content is synced to disk before the rename. An existing `path` is kept as `previous`, if
    that is given. If the block raises, the temporary file is removed and `path` is unchanged.
    Several processes may write the same path at once; the last one wins. Raises DiskFullError if
    there is no room; `needed_bytes` is the size of the content for its message.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        sync(temporary)
        reached("atomic.written")
        if previous is not None and path.exists():
            path.replace(previous)
            reached("atomic.previous_kept")
        temporary.replace(path)
        reached("atomic.replaced")
    except BaseException as error:
        with suppress(OSError):  # report the first error, not this one
            temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise disk_full(error, path, needed_bytes) from error
        raise


def write_bytes_atomic(path: Path, content: bytes) -> None:
    with atomic_path(path, needed_bytes=len(content)) as temporary:
        temporary.write_bytes(content)


def copy_atomic(source: Path, target: Path) -> None:
    with atomic_path(target, needed_bytes=source.stat().st_size) as temporary:
        shutil.copyfile(source, temporary)


def write_text_atomic(path: Path, text: str) -> None:
    """Write `text` as UTF-8 without converting line ends."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, value: Any) -> None:
    """Write indented JSON in UTF-8; raises ValueError for NaN and infinity."""
    write_text_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Flush a file, or the directory entries of a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
