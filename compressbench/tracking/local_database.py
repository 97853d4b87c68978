"""MLflow's database in a file: made whole or not at all; what is not whole is set aside.

MLflow makes its tables in dozens of steps, and a database whose making was interrupted fails for
ever. So it is made under another name and then linked to its own. `mlflow ui` makes a database in
place, perhaps at the same time: as long as it has that file open, the file is left alone.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from compressbench.core.atomic import sync

LOCK = ".mlflow.lock"
COMPANIONS = ("-journal", "-wal", "-shm")  # files of SQLite that belong to a database
QUIET_SECONDS = 5.0  # a file that nobody has open and that is as old was given up
_CHECK_SECONDS = 5.0  # how long to look through a large database at most
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def sqlite_uri(path: Path) -> str:
    """The URI of a database file, as SQLAlchemy reads it."""
    text = str(path)
    if "?" in text or unquote(text) != text:
        text = text.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{text}"


def remove_quoted_folder(uri: str) -> None:
    """Remove the folder that MLflow makes for a path as it is written in the URI, `%3F` for "?"."""
    if unquote(uri) != uri:
        with suppress(OSError):
            os.removedirs(Path(uri.removeprefix("sqlite:///")).parent)


def ready(path: Path) -> str:
    """Make sure that `path` is a whole database; return a line if another file was in its place.

    Raises OSError, or an error of sqlite3 or MLflow, if that cannot be had now.
    """
    from filelock import FileLock

    path = path.resolve()
    if path.exists() and look_at(path) == ("", False):
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / LOCK, timeout=60):
        if not path.exists():
            _make(path)
            return ""
        fault, is_old = look_at(path)
        if fault:
            _check_given_up(path)
            kept = _set_aside(path)
            _make(path)
            return (
                f"{path} was unusable ({fault}); it is kept as {kept.name}, and a new one was "
                "made, into which `compressbench sync` logs the runs of this folder"
            )
        if is_old and not _is_open_elsewhere(path):
            kept = _upgrade(path)
            return f"{path} was brought to this version of MLflow; it is kept as {kept.name}, too"
    return ""


def _make(path: Path) -> None:
    """Make a database that nobody sees before it is whole."""
    with _work_folder(path) as folder:
        new = folder / path.name
        _build(new)
        _set_aside(path)  # a journal without its database would be played into the new one
        _link(new, path)
        sync(path.parent)


def _upgrade(path: Path) -> Path:
    """Put an upgraded copy into the place of a database; return the name of the former one."""
    with _work_folder(path) as folder:
        new, kept = folder / path.name, _free_name(path, "before-upgrade")
        with closing(_connect(path)) as source, closing(sqlite3.connect(new)) as target:
            source.backup(target)
        _build(new)
        _link(path, kept)
        new.replace(path)
        sync(path.parent)
    return kept


def _build(new: Path) -> None:
    """Let MLflow make or upgrade the database `new`, and flush it to disk once at the end."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def hurry(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", hurry)
    try:
        store: Any = SqlAlchemyStore
        store(sqlite_uri(new), str(new.parents[1] / "mlruns")).engine.dispose()
    finally:
        event.remove(Engine, "connect", hurry)
        remove_quoted_folder(sqlite_uri(new))
    sync(new)


@contextmanager
def _work_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path`; those that a kill has left behind are removed."""
    prefix, suffix = f".{path.name}.", ".part"
    for left in path.parent.iterdir():
        if left.name.startswith(prefix) and left.name.endswith(suffix):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(suffix, prefix, path.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _link(source: Path, target: Path) -> None:
    """Give a file another name, which must be free."""
    try:
        target.hardlink_to(source)
    except FileExistsError as error:
        raise _busy(target) from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if target.exists():
            raise _busy(target) from error
        shutil.copyfile(source, source.with_suffix(".copy"))
        source.with_suffix(".copy").replace(target)


def _busy(path: Path) -> OSError:
    return OSError(errno.EBUSY, "another process is making it", str(path))


def look_at(path: Path) -> tuple[str, bool]:
    """What makes a database unusable ("" if nothing), and whether an older MLflow has made it."""
    if not path.is_file():
        return "not a file", False
    if path.stat().st_size == 0:
        return "empty", False
    try:
        with closing(_connect(path)) as connection:
            damage = _damage(connection)
            return (damage, False) if damage else _look_into(connection)
    except sqlite3.OperationalError:
        raise  # locked or not readable, so it says nothing about the content
    except sqlite3.DatabaseError as error:
        return str(error), False


def _connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=5)


def _damage(connection: sqlite3.Connection) -> str:
    """What SQLite finds wrong with the pages, as far as it gets in a few seconds."""
    deadline = time.monotonic() + _CHECK_SECONDS
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
    try:
        said = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        if str(error) != "interrupted":
            raise
        return ""
    finally:
        connection.set_progress_handler(None, 0)
    return "" if said == "ok" else f"damaged: {said.splitlines()[-1]}"


def _look_into(connection: sqlite3.Connection) -> tuple[str, bool]:
    """As `look_at`, of sound pages."""
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations
    from mlflow.store.db.base_sql_model import Base
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore  # noqa: F401 - has the tables

    named = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
    missing = sorted(set(Base.metadata.tables) - named)
    version = _first(connection, "alembic_version") if "alembic_version" in named else None
    if version is None:
        return "its making was interrupted: it has no version", False
    scripts = ScriptDirectory(str(Path(db_migrations.__file__).parent))
    if version == scripts.get_current_head():
        return (f"it lacks the tables {', '.join(missing[:3])}" if missing else ""), False
    is_older = version in {script.revision for script in scripts.walk_revisions()}
    if is_older and not ("runs" in named and _first(connection, "runs")):
        return "its making was interrupted, and it holds no run", False
    return "", is_older


def _first(connection: sqlite3.Connection, table: str) -> str | None:
    row = connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
    return None if row is None else str(row[0])


def _check_given_up(path: Path) -> None:
    """Raise OSError if another process may still be making or using the file."""
    if 0 <= _age(path) < QUIET_SECONDS and not _is_open_elsewhere(path):
        time.sleep(QUIET_SECONDS - _age(path))
    if 0 <= _age(path) < QUIET_SECONDS or _is_open_elsewhere(path):
        raise _busy(path)


def _age(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _is_open_elsewhere(path: Path) -> bool:
    """Whether another process has the file open, as far as /proc shows it."""
    for opened in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if opened.parts[2] != str(os.getpid()) and opened.samefile(path):
                return True
    return False


def _set_aside(path: Path) -> Path:
    """Rename a database with its companions, which go first: they must never meet another one."""
    kept = _free_name(path, "set-aside")
    for suffix in (*COMPANIONS, ""):
        here = path.with_name(path.name + suffix)
        if here.exists():
            here.rename(kept.with_name(kept.name + suffix))
    return kept


def _free_name(path: Path, word: str) -> Path:
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    return path.with_name(f"{path.name}.{word}-{stamp}")
