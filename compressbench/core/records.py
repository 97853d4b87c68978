"""A file of named values that grows record by record; what a kill or a bad disk damages is dropped.

A record is a line with its SHA-256 and two lengths, then JSON, then the tensors as safetensors.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

_HEADER = re.compile(rb"([0-9a-f]{64}) (\d{1,15}) (\d{1,15})\n")
_LONGEST_HEADER = 97
_log = logging.getLogger(__name__)


class Records:
    """The records of one file, the last of each name; written to the system, not to the disk.

    They survive the death of the process. After a crash of the machine the last ones may be
    missing. A file that cannot be written is given up with a warning: nothing depends on it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.places: dict[str, int] = {}
        self._writable = True
        if path.exists():
            self._scan()

    def append(self, name: str, value: Any) -> None:
        """Add a record: None, booleans, numbers, texts and tensors in lists, tuples and dicts."""
        if not self._writable:
            return
        content = encoded(name, value)
        try:
            with self.path.open("ab", buffering=0) as file:
                start = file.tell()
                if file.write(content) < len(content):
                    raise OSError(None, "the disk is full")
        except OSError as error:
            self._give_up(error)
        else:
            self.places[name] = start

    def read(self, name: str) -> Any:
        """The value of a record, None without one; tensors are on the CPU, tuples are lists."""
        if name not in self.places:
            return None
        return read_one(self.path, name, self.places[name])

    def _scan(self) -> None:
        """Find all records, and cut off what follows the last intact one."""
        size, end = self.path.stat().st_size, 0
        with self.path.open("rb") as file:
            while (found := _next(file, size)) is not None:
                self.places[found[0]] = end
                end = file.tell()
        if end < size:
            _log.info("%s: %d damaged bytes at its end are dropped", self.path, size - end)
            try:
                os.truncate(self.path, end)
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._writable = False
        _log.warning("cannot write %s (%s): what is measured is lost if this run is interrupted",
                     self.path, error.strerror)  # fmt: skip


def encoded(name: str, value: Any) -> bytes:
    """The bytes of a record."""
    tensors: list[Tensor] = []
    text = json.dumps([name, _plain(value, tensors)]).encode()
    binary = b""
    if tensors:
        from safetensors.torch import save

        binary = save({str(number): tensor for number, tensor in enumerate(tensors)})
    body = text + binary
    header = f"{hashlib.sha256(body).hexdigest()} {len(text)} {len(binary)}\n"
    return header.encode() + body


def read_one(path: Path, name: str, place: int = 0) -> Any:
    """The value of the record that begins at `place`, None if it is missing or damaged."""
    try:
        with path.open("rb") as file:
            file.seek(place)
            found = _next(file, path.stat().st_size)
    except FileNotFoundError:
        return None
    return found[1]() if found is not None and found[0] == name else None


def _next(file: BinaryIO, size: int) -> tuple[str, Any] | None:
    """Name of the next record, and a function that returns its value; None if it is not intact."""
    match = _HEADER.fullmatch(file.readline(_LONGEST_HEADER))
    if match is None:
        return None
    lengths = int(match[2]), int(match[3])
    if sum(lengths) > size - file.tell():
        return None
    body = file.read(sum(lengths))
    if hashlib.sha256(body).hexdigest().encode() != match[1]:
        return None
    try:
        name, plain = json.loads(body[: lengths[0]])
    except ValueError:  # a wrong length in an intact body
        return None
    return name, lambda: _value(plain, body[lengths[0] :])


def _plain(value: Any, tensors: list[Tensor]) -> Any:
    """JSON for `value`; its tensors are appended to `tensors`."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, tensors) for item in value]
    if isinstance(value, dict):
        return {"items": [[_plain(k, tensors), _plain(v, tensors)] for k, v in value.items()]}
    tensors.append(value.detach().cpu().contiguous().clone())
    return {"tensor": len(tensors) - 1}


def _value(plain: Any, binary: bytes) -> Any:
    tensors: dict[str, Tensor] = {}
    if binary:
        from safetensors.torch import load

        tensors = load(binary)

    def rebuilt(part: Any) -> Any:
        if isinstance(part, list):
            return [rebuilt(item) for item in part]
        if isinstance(part, dict):
            if "tensor" in part:
                return tensors[str(part["tensor"])]
            return {rebuilt(key): rebuilt(item) for key, item in part["items"]}
        return part

    return rebuilt(plain)
