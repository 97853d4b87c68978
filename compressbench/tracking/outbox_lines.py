"""The lines of an outbox: JSON with the time at which it was written and a digest.

A line that does not have its digest is damaged or foreign and is never used. A line that occurs
twice counts once, an empty one nothing. A cursor holds the digest of the lines before it: if one of
them has changed since, all lines are logged again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from compressbench.core.redact import redact

Operation = dict[str, Any]

_BEGIN = b'{"do": '
_SEAL = b', "sha256": "'
_END = b'"}'


def line_of(operation: Mapping[str, Any]) -> bytes:
    """The line of an operation, without credentials."""
    timed = {**redact(operation), "at": time.time_ns()}
    text = json.dumps(timed, ensure_ascii=False).encode(errors="replace")
    body = text.removesuffix(b"}")
    return body + _SEAL + _sha256(body) + _END + b"\n"


def operation_of(line: bytes) -> Operation | None:
    """The operation of a line without its newline; None if the line is damaged."""
    body, _, seal = line.rpartition(_SEAL)
    if seal != _sha256(body) + _END:
        return None
    operation: Operation = json.loads(body + b"}")
    return operation


def is_torn(tail: bytes) -> bool:
    """Whether a tail without newline is what a crash has left of a line."""
    return _SEAL not in tail and _BEGIN.startswith(tail[: len(_BEGIN)])


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


@dataclass(frozen=True)
class Recorded:
    """What an outbox holds.

    Attributes:
        entries: The operation of each line; None for one that is damaged or a repetition.
        damaged: Numbers of the damaged lines, from 1.
        prefixes: A digest of the lines up to each one.
    """

    entries: Sequence[Operation | None]
    damaged: Sequence[int]
    prefixes: Sequence[str]

    @cached_property
    def operations(self) -> list[Operation]:
        return [operation for operation in self.entries if operation is not None]

    def resumed(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The state of a server, from the start if the lines that it has are not the same now."""
        done = state["done"]
        if done == 0 or (done <= len(self.prefixes) and self.prefixes[done - 1] == state["prefix"]):
            return dict(state)
        return {"done": 0}

    def after(self, state: Mapping[str, Any]) -> Iterator[tuple[Operation | None, dict[str, Any]]]:
        """Each operation that a server does not have yet, with the cursor that follows it."""
        for index in range(state["done"], len(self.entries)):
            yield self.entries[index], self.cursor(index + 1)

    def cursor(self, done: int) -> dict[str, Any]:
        """The cursor of a server that has the first `done` lines, of which there is one."""
        return {"done": done, "prefix": self.prefixes[done - 1]}

    @property
    def complaint(self) -> str:
        """Says which lines were left out; "" if all are sound."""
        if not self.damaged:
            return ""
        shown = ", ".join(map(str, self.damaged[:5])) + ", ..." * (len(self.damaged) > 5)
        return f"damaged lines were left out: {shown}"


def recorded(content: bytes) -> Recorded:
    """Read lines; what follows the last newline is damage, since a line ends with one."""
    *lines, tail = content.split(b"\n")
    entries: list[Operation | None] = []
    damaged, prefixes, seen, prefix = [], [], set[bytes](), b""
    for number, line in enumerate(lines, start=1):
        operation = operation_of(line)
        if operation is None and line:
            damaged.append(number)
        entries.append(None if line in seen else operation)
        seen.add(line)
        prefix = _sha256(prefix + line)
        prefixes.append(prefix.decode())
    return Recorded(entries, [*damaged, len(lines) + 1] if tail else damaged, prefixes)
