"""What a run wants logged, on disk first: an append-only file of operations and a cursor.

`outbox.jsonl` holds one JSON operation a line and is the truth; `outbox.done` says, for each
tracking server, how many of them it has. Replaying an operation twice must do no harm.
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
from compressbench.core.redact import redact

RECORDS = "outbox.jsonl"
CURSOR = "outbox.done"
LOG = "outbox.log"
LOCK = ".outbox.lock"
APPEND_LOCK = ".outbox.append.lock"

Operation = dict[str, Any]


@dataclass(frozen=True)
class Outbox:
    """The outbox of one run folder. One process appends; one, under the lock, drains.

    That of a sweep or a trial is `shared`: several processes may append.
    """

    folder: Path
    shared: bool = False

    @property
    def records(self) -> Path:
        return self.folder / RECORDS

    def append(self, *operations: Mapping[str, Any]) -> None:
        """Add operations, on disk when this returns. Credentials are taken out.

        Raises UserError naming path and bytes when it cannot be written; what was there stays.
        """
        texts = (json.dumps(redact(operation), ensure_ascii=False) for operation in operations)
        lines = "".join(f"{text}\n" for text in texts).encode()
        try:
            with self._alone():
                _write_lines(self.records, lines)
        except OSError as error:
            raise UserError(
                f"{self.records}: {len(lines)} bytes could not be written: {error.strerror}"
            ) from error

    def _alone(self) -> AbstractContextManager[object]:
        """Nobody else appends meanwhile; the lock is free again when its holder dies."""
        if not self.shared:
            return nullcontext()
        from filelock import FileLock

        return FileLock(self.folder / APPEND_LOCK, timeout=60)

    def read(self) -> list[Operation]:
        """All whole operations, in order; a torn last line is not one."""
        return self.read_from(0)[0]

    def read_from(self, offset: int) -> tuple[list[Operation], int]:
        """The whole operations after `offset` bytes, and the offset after them."""
        if not self.records.exists():
            return [], offset
        with self.records.open("rb") as file:
            file.seek(offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        lines = whole.splitlines()
        return [json.loads(line) for line in lines], offset + len(whole) + len(newline)

    def state(self, target: str) -> dict[str, Any]:
        """What `target` has: `done` operations, and the ids that it gave."""
        path = self.folder / CURSOR
        states = json.loads(path.read_text()) if path.exists() else {}
        found: dict[str, Any] = states.get(target, {"done": 0})
        return found

    def mark(self, target: str, state: Mapping[str, Any]) -> None:
        path = self.folder / CURSOR
        states = json.loads(path.read_text()) if path.exists() else {}
        write_text_atomic(path, json.dumps({**states, target: dict(state)}) + "\n")


def _write_lines(path: Path, lines: bytes) -> None:
    with path.open("a+b", buffering=0) as file:
        whole = path.read_bytes().rfind(b"\n") + 1
        file.truncate(whole)  # what a crash left of a line
        try:
            if file.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(whole)
            raise
