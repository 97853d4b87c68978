"""Files that hold their old content or the whole new one, wherever a kill or a full disk falls."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """A temporary path beside `path` for the block to write; at its end the file takes its place.

    The file is on disk before it is renamed. What `path` held becomes `previous`, where that is
    given. When the block raises, the temporary file is removed and `path` stays as it was. Several
    processes may write the same path at once: the last one stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        sync(temporary)
        if previous is not None and path.exists():
            path.replace(previous)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)
        raise


def write_bytes_atomic(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text_atomic(path: Path, text: str) -> None:
    """UTF-8, line ends as they are in `text`."""
    write_bytes_atomic(path, text.encode())


def write_json_atomic(path: Path, value: Any) -> None:
    """JSON for people and programs: indented, UTF-8. Raises ValueError for NaN and infinity."""
    write_text_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
