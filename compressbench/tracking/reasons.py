"""Says in a few words why MLflow could not be used."""

from __future__ import annotations

import errno
import re
import shutil
from pathlib import Path

_MOST_LETTERS = 200
_ROOM = 1_000_000  # what an empty database takes
_FULL = "database or disk is full"
_CAUSES = (
    (r"failed with error code (3\d\d)", "answers {}, and redirects are not followed"),
    (r"failed with error code (401|403)", "answers {}: name and password, or rights, are missing"),
    (r"failed with error code (\d{3})", "answers {}"),
    (r"too many (\d{3}) error responses", "answers {}"),
    (r"valid JSON|not those of MLflow|Failed to parse", "is not a server of MLflow"),
    (r"(?i)certificate|ssl", "is unreachable: TLS fails"),
    (r"(?i)name or service not known|name resolution|getaddrinfo|nodename", "is unreachable: "
     "its name is not known"),
    (r"Connection refused", "is unreachable: connection refused"),
    (r"(?i)timed out|timeout|too long", "is unreachable: it does not answer in time"),
)  # fmt: skip


def http_reason(text: str) -> str:
    """Why a server could not be used, from the text of MLflow's exception."""
    for pattern, words in _CAUSES:
        if match := re.search(pattern, text):
            return words.format(*match.groups())
    return "is unreachable"


def reason(error: Exception, text: str, folder: Path | None = None) -> str:
    """Why a database could not be used, or refuses; `text` is that of the exception."""
    if folder is not None and (_FULL in text or getattr(error, "errno", 0) == errno.ENOSPC):
        free = shutil.disk_usage(folder).free
        return f"has no room: about {_ROOM:,} bytes are needed in {folder}, {free:,} are free"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be used: {error.strerror}"
    return f"refuses: {text.partition(chr(10))[0][:_MOST_LETTERS]}"
