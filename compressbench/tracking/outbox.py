"""The outbox of a run: an append-only file of operations to log, and a cursor.

`outbox.jsonl` has one JSON operation per line, with a digest, and is the source of truth;
`outbox.done` stores how far each tracking server has it. Operations must be idempotent: what the
cursor cannot prove to be logged is logged again.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressbench.core.atomic import write_bytes_atomic
from compressbench.core.errors import UserError
from compressbench.core.kill_points import reached
from compressbench.tracking.outbox_lines import (
    Operation,
    Recorded,
    is_torn,
    line_of,
    operation_of,
    recorded,
)

RECORDS = "outbox.jsonl"
CURSOR = "outbox.done"
LOG = "outbox.log"
LOCK = ".outbox.lock"
APPEND_LOCK = ".outbox.append.lock"
_VITAL = ("start", "finish")  # written twice: if one is damaged, there is the other
_MOST_BYTES = 1 << 28  # of a file that can still be an outbox


@dataclass(frozen=True)
class Outbox:
    """The outbox of one run folder. One process appends, and one, holding the lock, drains.

    If `shared` (sweeps and trials), several processes may append.
    """

    folder: Path
    shared: bool = False

    @property
    def records(self) -> Path:
        return self.folder / RECORDS

    def append(self, *operations: Mapping[str, Any]) -> None:
        """Append operations, without credentials, and flush them to disk.

        Raises UserError if the file cannot be written; it is then left unchanged.
        """
        written = [(line_of(o), 2 if o["do"] in _VITAL else 1) for o in operations]
        # an empty line between copies: a damaged newline joins it to one of them, not both
        lines = b"".join(b"\n".join([line] * times) for line, times in written)
        try:
            with self._alone():
                reached("outbox.before_append")
                _write_lines(self.records, lines)
                reached("outbox.appended")
        except OSError as error:
            raise UserError(unwritable(self.records, len(lines), error)) from error

    def _alone(self) -> AbstractContextManager[object]:
        """Exclude other writers; the lock is released if its holder dies."""
        if not self.shared:
            return nullcontext()
        from filelock import FileLock

        return FileLock(self.folder / APPEND_LOCK, timeout=60)

    def read(self) -> list[Operation]:
        """All undamaged operations, in order, each once."""
        return self.lines().operations

    def read_from(self, offset: int) -> tuple[list[Operation], int]:
        """The undamaged operations from byte `offset` on, and the offset after them."""
        content = self._content(offset)
        return recorded(content).operations, offset + content.rfind(b"\n") + 1

    def lines(self) -> Recorded:
        """What the file holds, line by line. Raises UserError if it is no file of that kind."""
        return recorded(self._content(0))

    def _content(self, offset: int) -> bytes:
        if not self.records.exists():
            return b""
        _check_plain(self.records)
        with self.records.open("rb") as file:
            file.seek(offset)
            return file.read()

    def state(self, target: str) -> dict[str, Any]:
        """The state of a tracking server: the number of lines `done`, and its ids."""
        state: dict[str, Any] = self._states().get(target, {"done": 0})
        return state

    def _states(self) -> dict[str, Any]:
        path = self.folder / CURSOR
        content = path.read_bytes() if path.is_file() else b""
        states: dict[str, Any] = (operation_of(content.rstrip(b"\n")) or {}).get("servers", {})
        return states  # none if the file is damaged

    def mark(self, target: str, state: Mapping[str, Any]) -> None:
        """Store the state of a tracking server. Raises UserError if it cannot be written."""
        line = line_of({"servers": {**self._states(), target: dict(state)}})
        try:
            write_bytes_atomic(self.folder / CURSOR, line)
        except OSError as error:
            raise UserError(unwritable(self.folder / CURSOR, len(line), error)) from error

    def has_all(self, target: str) -> bool:
        """Whether a tracking server has everything that is in the outbox now."""
        lines = self.lines()
        done: int = lines.resumed(self.state(target))["done"]
        return done == len(lines.entries)


def unwritable(path: Path, needed: int, error: OSError) -> str:
    """One line that says why a file could not be written, and how much room there is."""
    reason = f"{path}: cannot write {needed:,} bytes: {error.strerror or error}"
    try:
        free = shutil.disk_usage(path.parent).free
    except OSError:
        return reason
    return f"{reason} ({free:,} bytes are free)"


def _check_plain(path: Path) -> None:
    """Raise UserError for what would hang or fill the memory when it is read."""
    if not path.is_file() or path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path}: not the outbox of a run")


def _write_lines(path: Path, lines: bytes) -> None:
    if path.exists():
        _check_plain(path)
    with path.open("a+b", buffering=0) as file:
        file.seek(0)
        content = file.read()
        size = content.rfind(b"\n") + 1
        if is_torn(content[size:]):
            file.truncate(size)
        elif content[size:]:  # foreign or damaged: it stays, and is a line of its own
            lines, size = b"\n" + lines, len(content)
        try:
            if file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise
