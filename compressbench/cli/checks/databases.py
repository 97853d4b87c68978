"""Whether a database can be opened, and locked for writing; nothing is left in it."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from compressbench.core.extras import extra

BUSY_SECONDS, CONNECT_SECONDS = 2.0, 4


def sqlite_problem(path: Path, statement: str) -> str:
    """Why the SQLite database at `path` cannot be written, or has no answer to `statement`."""
    address = f"file:{quote(str(path.absolute()))}?mode=rw"
    try:
        opened = sqlite3.connect(address, timeout=BUSY_SECONDS, uri=True, isolation_level=None)
        with closing(opened) as connection:
            connection.execute("BEGIN IMMEDIATE")
            complete = connection.execute(statement).fetchone() is not None
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return str(error)
    return "" if complete else "is not complete"


def wal_problem(folder: Path) -> str:
    """Why a sweep cannot keep its SQLite database in `folder`, or ""."""
    path = folder / "probe.db"
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as first:
        (mode,) = first.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            return f"SQLite takes the journal mode {mode} instead of WAL"
        first.execute("CREATE TABLE probe (number INTEGER)")
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as second:
            first.execute("BEGIN IMMEDIATE")
            try:
                second.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                first.execute("ROLLBACK")
                return ""
    return "two connections get the same lock"


def postgresql_problem(url: str) -> str:
    """Why the PostgreSQL database at `url` cannot be written, or "". Raises UserError without its
    library.
    """
    psycopg = extra("psycopg", "postgres")
    address = f"postgresql://{url.partition('://')[2]}"
    limit = f"-c statement_timeout={CONNECT_SECONDS}s"
    try:
        opened = psycopg.connect(address, connect_timeout=CONNECT_SECONDS, options=limit)
        with closing(opened) as connection:
            connection.execute("CREATE TABLE compressbench_doctor (number INTEGER)")
            connection.rollback()  # takes the table away again
    except psycopg.Error as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""
