"""Records which entries must be kept: those pinned by the user and those in use by a live process.

`pins/<key>/` has one file per reason: `pin-<digest>`, which contains the reason, and an empty
`process-<token>` for each process that has read the entry, valid while that process lives.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from compressbench.core.digests import digest
from compressbench.store.processes import is_alive, process_token

_PINS = "pins"


def pin(root: Path, key: str, reason: str) -> None:
    """Protect an entry from collection until `unpin`."""
    _write(root, key, _name(reason), reason)


def hold(root: Path, key: str) -> None:
    """Protect an entry from collection as long as this process lives."""
    _write(root, key, f"process-{process_token()}", "")


def unpin(root: Path, key: str, reason: str | None = None) -> None:
    """Remove one reason to keep an entry, or all reasons."""
    pattern = "pin-*" if reason is None else _name(reason)
    for path in (root / _PINS / key).glob(pattern):
        path.unlink(missing_ok=True)


def reasons(root: Path, key: str) -> list[str]:
    """The reasons to keep an entry; empty if it may be collected."""
    found = []
    for path in sorted((root / _PINS / key).glob("*")):
        if path.name.startswith("pin-"):
            found.append(_reason(path))
        elif _is_held(path):
            found.append(f"in use by process {path.name.split('-')[2]}")
    return found


def prune(root: Path, key: str) -> None:
    """Remove the marks of processes that have ended."""
    folder = root / _PINS / key
    for path in folder.glob("process-*"):
        if not _is_held(path):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # not empty, or already removed by another process
        folder.rmdir()


def marked(root: Path) -> list[str]:
    """The keys that have any marks, also those of processes that have ended."""
    return sorted(path.name for path in (root / _PINS).glob("*"))


def _is_held(path: Path) -> bool:
    try:
        age_seconds = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    return is_alive(path.name.partition("-")[2], age_seconds)


def _reason(path: Path) -> str:
    """The reason in a file, whose name is its digest; what was damaged keeps the entry as well."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return text if _name(text) == path.name else "a reason whose file is damaged"


def _write(root: Path, key: str, name: str, text: str) -> None:
    path = root / _PINS / key / name
    for last in (False, True):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.write_text(text, encoding="utf-8")
        except FileNotFoundError:  # `prune` of another process removed the empty folder meanwhile
            if last:
                raise


def _name(reason: str) -> str:
    return f"pin-{digest([reason])[:32]}"
