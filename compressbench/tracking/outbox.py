"""The outbox of a run: an append-only file of operations to log, and a cursor.

`outbox.jsonl` has one JSON operation per line and is the source of truth; `outbox.done` stores how
many of them each tracking server has. Operations must be idempotent.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressbench.core.atomic import write_text_atomic
from compressbench.core.errors import UserError
from compressbench.core.kill_points import reached
from compressbench.core.redact import redact

RECORDS = "outbox.jsonl"
CURSOR = "outbox.done"
LOG = "outbox.log"
LOCK = ".outbox.lock"
APPEND_LOCK = ".outbox.append.lock"

Operation = dict[str, Any]


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
        texts = (json.dumps(redact(operation), ensure_ascii=False) for operation in operations)
        lines = "".join(f"{text}\n" for text in texts).encode()
        try:
            with self._alone():
                reached("outbox.before_append")
                _write_lines(self.records, lines)
                reached("outbox.appended")
        except OSError as error:
            raise UserError(
                f"{self.records}: cannot write {len(lines)} bytes: {error.strerror}"
            ) from error

    def _alone(self) -> AbstractContextManager[object]:
        """Exclude other writers; the lock is released if its holder dies."""
        if not self.shared:
            return nullcontext()
        from filelock import FileLock

        return FileLock(self.folder / APPEND_LOCK, timeout=60)

    def read(self) -> list[Operation]:
        """All complete operations, in order, without a partly written last line."""
        return self.read_from(0)[0]

    def read_from(self, offset: int) -> tuple[list[Operation], int]:
        """The complete operations from byte `offset` on, and the offset after them."""
        if not self.records.exists():
            return [], offset
        with self.records.open("rb") as file:
            file.seek(offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        lines = whole.splitlines()
        return [json.loads(line) for line in lines], offset + len(whole) + len(newline)

    def state(self, target: str) -> dict[str, Any]:
        """The state of a tracking server: the number of operations `done`, and its ids."""
        path = self.folder / CURSOR
        states = json.loads(path.read_text()) if path.exists() else {}
        state: dict[str, Any] = states.get(target, {"done": 0})
        return state

    def mark(self, target: str, state: Mapping[str, Any]) -> None:
        """Store the state of a tracking server."""
        path = self.folder / CURSOR
        states = json.loads(path.read_text()) if path.exists() else {}
        write_text_atomic(path, json.dumps({**states, target: dict(state)}) + "\n")


def _write_lines(path: Path, lines: bytes) -> None:
    with path.open("a+b", buffering=0) as file:
        whole = path.read_bytes().rfind(b"\n") + 1
        file.truncate(whole)  # removes a line that a crash left incomplete
        try:
            if file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(whole)
            raise
