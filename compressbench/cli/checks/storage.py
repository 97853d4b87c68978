"""The storage of sweeps: SQLite in their folders, or the database of `search.storage`."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressbench.cli.checks.databases import postgresql_problem, wal_problem
from compressbench.cli.checks.finding import BROKEN, FINE, Finding
from compressbench.cli.checks.folders import existing
from compressbench.core.errors import UserError
from compressbench.core.redact import redact

_SUBJECT = "sweep storage"


def check(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Open it and lock it, as the workers of a sweep do."""
    url = settings["storage"]
    yield _in_folder(existing(Path(settings["sweeps"]))) if url is None else _at(str(url))


def _in_folder(folder: Path) -> Finding:
    advice = "give search.folder=FOLDER on a local disk, or search.storage=postgresql://..."
    try:
        with tempfile.TemporaryDirectory(prefix=".compressbench-doctor-", dir=folder) as probe:
            problem = wal_problem(Path(probe))
    except (OSError, sqlite3.Error) as error:
        problem = str(error)
    if problem:
        return Finding(_SUBJECT, BROKEN, f"SQLite in {folder}: {problem}", advice)
    return Finding(_SUBJECT, FINE, f"SQLite in {folder} is locked for one writer at a time")


def _at(url: str) -> Finding:
    shown = redact(url)
    if url.partition("://")[0] not in ("postgresql", "postgresql+psycopg"):
        found = f"search.storage={shown} must be null or postgresql://HOST/DATABASE"
        return Finding(_SUBJECT, BROKEN, found, "correct that setting")
    try:
        problem = postgresql_problem(url)
    except UserError as error:
        reason, _, advice = str(error).partition(": ")
        return Finding(_SUBJECT, BROKEN, f"{shown}: {reason}", advice)
    if not problem:
        return Finding(_SUBJECT, FINE, f"{shown} can be opened, and tables made in it")
    advice = "look at the address, the user's rights, and whether the server runs"
    return Finding(_SUBJECT, BROKEN, f"{shown}: {problem}", advice)
