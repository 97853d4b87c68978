"""Sets the database of a sweep aside where SQLite cannot read it."""

from __future__ import annotations

import logging
import re
import sqlite3
from contextlib import closing
from pathlib import Path

from compressbench.core.errors import TransientError
from compressbench.search.leases import TABLE
from compressbench.search.result import load

BUSY_SECONDS = 60
_TASK = re.compile(r"trial/\d+|repeat/\d+/\d+")


def set_damaged_aside(database: Path) -> None:
    """Rename a SQLite database that cannot be read, with a warning; call it under the lock."""
    problem = _problem(database)
    if problem:
        set_aside(database, problem)


def set_aside(database: Path, problem: str) -> None:
    """Rename a database, with a warning that says why."""
    number = sum(1 for _ in database.parent.glob(f"{database.name}.damaged-*")) + 1
    aside = database.with_name(f"{database.name}.damaged-{number}")
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.rename(aside)
    logging.getLogger(__name__).warning(
        "%s is damaged (%s): set aside as %s", database, problem, aside.name
    )


def _problem(database: Path) -> str:
    """Why SQLite cannot read a database; "" if it can, or if there is none."""
    if not database.is_file() or database.stat().st_size == 0:
        return ""
    try:
        with closing(sqlite3.connect(database, timeout=BUSY_SECONDS)) as connection:
            rows = connection.execute("PRAGMA quick_check(1)").fetchall()
            found = str(rows[0][0]).partition("\n")[0]
            return _changed_result(connection) if found == "ok" else found
    except sqlite3.OperationalError as error:
        locked = "locked" in str(error) or "unable to open" in str(error)
        return "" if locked else str(error)
    except sqlite3.DatabaseError as error:
        return str(error)


def _changed_result(connection: sqlite3.Connection) -> str:
    """What is wrong with the first task that is no task, or whose result does not match its digest:
    SQLite does not check what it stores.
    """
    named = "SELECT name FROM sqlite_master WHERE name = ?"
    if not connection.execute(named, (TABLE,)).fetchall():
        return ""
    for task, text in connection.execute(f"SELECT task, result FROM {TABLE} WHERE state = 'done'"):
        if not _TASK.fullmatch(str(task)):
            return f"there is no task {task!r}"
        try:
            load(text)
        except (TransientError, TypeError, ValueError, AttributeError):
            return f"the result of {task} was changed"
    return ""
