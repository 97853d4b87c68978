"""Leases on the tasks of a sweep: one row per task, changed by single atomic statements.

A task (`trial/12`, `repeat/12/1`) is `running` under an owner until its lease expires, `released`
by an owner that stopped in order, or `done` with a result. Writing the result is the fence: it
succeeds for the owner alone, whoever else adopted the task in between. Times are the database's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy
from sqlalchemy import Engine

from compressbench.store.processes import is_alive

MOST_LOSSES = 2  # a task whose workers died more often has failed
TABLE = "compressbench_tasks"
_CREATE = f"""CREATE TABLE IF NOT EXISTS {TABLE} (
    study INTEGER NOT NULL, task VARCHAR(64) NOT NULL, owner VARCHAR(64) NOT NULL,
    state VARCHAR(16) NOT NULL, losses INTEGER NOT NULL, expires DOUBLE PRECISION NOT NULL,
    result TEXT, PRIMARY KEY (study, task))"""
_INDEX = f"CREATE INDEX IF NOT EXISTS {TABLE}_state ON {TABLE} (study, state)"
_NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "extract(epoch from clock_timestamp())",
}
_MINE = f"{TABLE}.owner = :owner AND {TABLE}.state = 'running'"


@dataclass(frozen=True)
class Leases:
    """The tasks of one study."""

    engine: Engine
    study: int
    seconds: float

    def create_table(self) -> None:
        self._change(_CREATE)
        self._change(_INDEX)

    def hold(self, task: str, owner: str) -> bool:
        """Begin or extend a lease; False if another owner has the task."""
        return self._change(
            f"INSERT INTO {TABLE} VALUES (:study, :task, :owner, 'running', 0, {self._soon}, "
            f"NULL) ON CONFLICT (study, task) DO UPDATE SET expires = {self._soon} WHERE {_MINE}",
            task=task, owner=owner,
        )  # fmt: skip

    def finish(self, task: str, owner: str, result: str) -> bool:
        """Write the result; False, and nothing written, if the owner has lost the task."""
        return self._change(
            f"INSERT INTO {TABLE} VALUES (:study, :task, :owner, 'done', 0, 0, :result) "
            f"ON CONFLICT (study, task) DO UPDATE SET state = 'done', result = :result "
            f"WHERE {_MINE}",
            task=task, owner=owner, result=result,
        )  # fmt: skip

    def adopt(self, task: str, owner: str) -> bool:
        """Take over a released task, or one whose lease expired and that was not lost too often."""
        return self._change(
            f"UPDATE {TABLE} SET owner = :owner, expires = {self._soon}, state = 'running', "
            "losses = losses + CASE WHEN state = 'running' THEN 1 ELSE 0 END "
            f"WHERE study = :study AND task = :task AND (state = 'released' OR (state = 'running' "
            f"AND expires < {self._now} AND losses < {MOST_LOSSES}))",
            task=task, owner=owner,
        )  # fmt: skip

    def condemn(self, task: str, owner: str, result: str) -> bool:
        """Fail a task that was lost too often."""
        return self._change(
            f"UPDATE {TABLE} SET owner = :owner, state = 'done', result = :result "
            f"WHERE study = :study AND task = :task AND state = 'running' "
            f"AND expires < {self._now} AND losses >= {MOST_LOSSES}",
            task=task, owner=owner, result=result,
        )  # fmt: skip

    def fail_task_of(self, owner: str, result: str) -> bool:
        """Fail the trial of a dead process whose token begins with `owner`."""
        return self._change(
            f"UPDATE {TABLE} SET state = 'done', result = :result WHERE study = :study "
            "AND state = 'running' AND task LIKE 'trial/%' AND owner LIKE :owner",
            owner=f"{owner}%", result=result,
        )  # fmt: skip

    def release(self, task: str, owner: str) -> None:
        """Return a task in good order: the next worker takes it at once, and it is not a loss."""
        self._change(
            f"INSERT INTO {TABLE} VALUES (:study, :task, :owner, 'released', 0, 0, NULL) "
            f"ON CONFLICT (study, task) DO UPDATE SET state = 'released' WHERE {_MINE}",
            task=task, owner=owner,
        )  # fmt: skip

    def _expire(self, owner: str) -> None:
        self._change(
            f"UPDATE {TABLE} SET expires = 0 WHERE study = :study AND {_MINE}", owner=owner
        )

    def abandon(self, task: str) -> None:
        """Make a task that has no lease available for adoption."""
        self._change(
            f"INSERT INTO {TABLE} VALUES (:study, :task, '', 'running', 0, 0, NULL) "
            "ON CONFLICT (study, task) DO NOTHING",
            task=task,
        )

    def loose(self, prefix: str) -> list[tuple[str, int]]:
        """(task, losses) of the tasks that can be adopted or condemned.

        Leases of workers that are known to be dead (they ran on this machine) end at once.
        """
        query = (
            f"SELECT task, losses, owner, state, expires < {self._now} AS late FROM {TABLE} "
            "WHERE study = :study AND state IN ('released', 'running') AND task LIKE :prefix "
            "ORDER BY task"
        )
        found = []
        for row in self._rows(query, prefix=f"{prefix}/%"):
            dead = row.state == "running" and not row.late and not is_alive(row.owner, 0.0)
            if dead:
                self._expire(row.owner)
            if dead or row.late or row.state == "released":
                found.append((row.task, row.losses))
        return found

    def states(self, prefix: str) -> dict[str, str]:
        rows = self._rows(
            f"SELECT task, state FROM {TABLE} WHERE study = :study AND task LIKE :prefix",
            prefix=f"{prefix}/%",
        )
        return {row.task: row.state for row in rows}

    def result(self, task: str) -> str | None:
        rows = self._rows(
            f"SELECT result FROM {TABLE} WHERE study = :study AND task = :task AND state = 'done'",
            task=task,
        )
        return rows[0].result if rows else None

    def results(self, prefix: str) -> dict[str, str]:
        """Task -> result, of all finished tasks."""
        rows = self._rows(
            f"SELECT task, result FROM {TABLE} WHERE study = :study AND state = 'done' "
            "AND task LIKE :prefix",
            prefix=f"{prefix}/%",
        )
        return {row.task: row.result for row in rows}

    def owner(self, task: str) -> str:
        rows = self._rows(
            f"SELECT owner FROM {TABLE} WHERE study = :study AND task = :task", task=task
        )
        return str(rows[0].owner) if rows else ""

    @property
    def _now(self) -> str:
        return _NOW[self.engine.dialect.name]

    @property
    def _soon(self) -> str:
        return f"{self._now} + {float(self.seconds)}"

    def _change(self, statement: str, **values: Any) -> bool:
        with self.engine.begin() as connection:
            done = connection.execute(sqlalchemy.text(statement), {"study": self.study, **values})
            return done.rowcount == 1

    def _rows(self, statement: str, **values: Any) -> list[Any]:
        with self.engine.connect() as connection:
            found = connection.execute(sqlalchemy.text(statement), {"study": self.study, **values})
            return list(found)
