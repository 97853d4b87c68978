"""What a run wants logged, on disk first: an append-only file of operations and a cursor.

`outbox.jsonl` holds one JSON operation a line and is the truth; `outbox.done` says, for each
tracking server, how many of them it has. Replaying an operation twice must do no harm.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressbench.errors import UserError
from compressbench.redact import redact

RECORDS = "outbox.jsonl"
CURSOR = "outbox.done"
LOG = "outbox.log"
LOCK = ".outbox.lock"

Operation = dict[str, Any]


@dataclass(frozen=True)
class Outbox:
    """The outbox of one run folder. One process appends; one, under the lock, drains."""

    folder: Path

    @property
    def records(self) -> Path:
        return self.folder / RECORDS

    def append(self, operation: Mapping[str, Any]) -> None:
        """Add one operation, on disk when this returns. Credentials are taken out.

        Raises UserError naming path and bytes when it cannot be written; what was there stays.
        """
        line = (json.dumps(redact(operation), ensure_ascii=False) + "\n").encode()
        try:
            _write_line(self.records, line)
        except OSError as error:
            raise UserError(
                f"{self.records}: {len(line)} bytes could not be written: {error.strerror}"
            ) from error

    def read(self) -> list[Operation]:
        """All whole operations, in order; a torn last line is not one."""
        if not self.records.exists():
            return []
        whole, _, _ = self.records.read_bytes().rpartition(b"\n")
        return [json.loads(line) for line in whole.splitlines()]

    def state(self, target: str) -> dict[str, Any]:
        """What `target` has: `done` operations, and the ids that it gave."""
        path = self.folder / CURSOR
        states = json.loads(path.read_text()) if path.exists() else {}
        found: dict[str, Any] = states.get(target, {"done": 0})
        return found

    def mark(self, target: str, state: Mapping[str, Any]) -> None:
        path = self.folder / CURSOR
        states = json.loads(path.read_text()) if path.exists() else {}
        partial = path.with_name(CURSOR + ".part")
        partial.write_text(json.dumps({**states, target: dict(state)}) + "\n")
        partial.replace(path)


def _write_line(path: Path, line: bytes) -> None:
    with path.open("a+b", buffering=0) as file:
        whole = path.read_bytes().rfind(b"\n") + 1
        file.truncate(whole)  # what a crash left of a line
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(whole)
            raise
