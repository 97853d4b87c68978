"""The storage of a sweep: an Optuna study and our leases in one database.

SQLite in WAL mode in the sweep's folder, or PostgreSQL by URL. Both are made before any worker
starts. What must not happen twice (making the study, giving out a number) is done under a lock:
a file lock for SQLite, an advisory lock for PostgreSQL.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from filelock import FileLock
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from compressbench.core.disk_full import DiskFullError, explained_when_full
from compressbench.core.errors import UserError
from compressbench.core.kill_points import reached
from compressbench.core.redact import redact
from compressbench.results.sweep import Constraint, Objective
from compressbench.search.damaged import BUSY_SECONDS, set_aside, set_damaged_aside
from compressbench.search.leases import Leases
from compressbench.search.result import Result, load

NEW_DATABASE_BYTES = 2**18  # of an empty one, and its journal
DATABASE, OWNER = "sweep.db", "compressbench.owner"
FIXED = "fixed_params"  # Optuna's name of settings that a trial takes without a sampler
_BUSY_SECONDS, _CONNECT_SECONDS, _LOCK_SECONDS = BUSY_SECONDS, 5, 0.003
_STATES = {
    "complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL,
    "infeasible": TrialState.COMPLETE,  # the only state that all samplers learn from
}  # fmt: skip
REFUSED = "refused"  # the constraint that all infeasible trials violate


@dataclass(frozen=True)
class SweepStorage:
    """Storage of a sweep: hands out trials and records their results."""

    study: optuna.Study
    leases: Leases
    lock_path: Path | None  # None: the database's own lock

    @property
    def engine(self) -> sqlalchemy.Engine:
        return self.leases.engine

    def new_trial(
        self, n_trials: int, owner: str, starts: Sequence[Mapping[str, Any]]
    ) -> Trial | None:
        """The next trial, below `n_trials` in all; the first ones have the settings of `starts`."""
        storage, study = self.study._storage, self.study._study_id
        with self.locked():
            number = self.created()
            if number >= n_trials:
                return None
            fixed = {FIXED: dict(starts[number])} if number < len(starts) else {}
            template = optuna.trial.create_trial(
                state=TrialState.RUNNING, user_attrs={OWNER: owner}, system_attrs=fixed
            )
            created = storage.create_new_trial(study, template_trial=template)
        reached("study.trial_made")
        self.study._thread_local.cached_all_trials = None
        return Trial(self.study, created)

    def created(self) -> int:
        statement = "SELECT count(*) FROM trials WHERE study_id = :study"
        with self.engine.connect() as connection:
            found = connection.execute(sqlalchemy.text(statement), {"study": self.study._study_id})
            return int(found.scalar_one())

    def states(self) -> dict[str, int]:
        """Number of trials in each state; changes whenever a trial does."""
        statement = "SELECT state, count(*) FROM trials WHERE study_id = :study GROUP BY state"
        with self.engine.connect() as connection:
            found = connection.execute(sqlalchemy.text(statement), {"study": self.study._study_id})
            return {str(state): int(count) for state, count in found}

    def trial(self, number: int) -> Trial:
        """An existing trial, to be resumed."""
        storage, study = self.study._storage, self.study._study_id
        self.study._thread_local.cached_all_trials = None
        return Trial(self.study, storage.get_trial_id_from_study_id_trial_number(study, number))

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def tell(
        self,
        trial: Trial,
        result: Result,
        objectives: Sequence[Objective],
        constraints: Sequence[Constraint],
    ) -> None:
        """Report a stored result to Optuna, unless that has happened already.

        An infeasible one has the worst values, and violates the constraint `REFUSED`, which all
        others fulfil: the Gaussian processes need the same constraints in every trial.
        """
        values = result.values(objectives) if result.state == "complete" else None
        refused = -1.0
        if result.state == "infeasible":
            values, refused = [_worst(o) for o in objectives], result.violation
        with contextlib.suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):
            told = {REFUSED: refused, **result.violations(constraints)} if values else {}
            for name, violation in told.items():
                with warnings.catch_warnings(action="ignore"):  # another worker may tell it, too
                    trial.set_constraint(name, violation)
            self.study.tell(trial, values, state=_STATES[result.state])
            reached("study.told")

    def results(self) -> dict[int, Result]:
        found = self.leases.results("trial")
        return {int(t.partition("/")[2]): load(text) for t, text in found.items()}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        with _lock(self.lock_path, self.engine, self.study._study_id):
            yield


def _worst(objective: Objective) -> float:
    return math.inf if objective.direction == "minimize" else -math.inf


@contextlib.contextmanager
def database_errors(shown: str) -> Iterator[None]:
    """Turn what a database raises into a UserError of one line."""
    try:
        yield
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(getattr(error, "orig", None) or error.__cause__ or error).strip()
        line = redact(reason.partition("\n")[0])
        raise UserError(f"search.storage={shown}: {line}") from error


@contextlib.contextmanager
def _lock(path: Path | None, engine: sqlalchemy.Engine, number: int) -> Iterator[None]:
    if path is not None:
        with FileLock(path, poll_interval=_LOCK_SECONDS):
            yield
        return
    with engine.connect() as connection:  # the lock ends with the transaction, or its process
        connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(7265, :n)"), {"n": number})
        yield


def open_storage(
    folder: Path,
    url: str | None,
    name: str,
    lease_seconds: float,
    objectives: Sequence[Objective] | None = None,
) -> SweepStorage:
    """The storage of the sweep `name`; with `objectives` it is made where there is none, and a
    damaged file set aside.

    Raises UserError for a storage that cannot be reached, or that lacks the sweep.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", "Clip non-finite values")  # those of infeasible trials
    shown = redact(url) if url else str(folder / DATABASE)
    try:
        if objectives is not None and url is None:
            folder.mkdir(parents=True, exist_ok=True)
        if objectives is None and url is None and not (folder / DATABASE).is_file():
            raise UserError(f"{folder}: no sweep here")
        lock = folder / f".{DATABASE}.lock" if url is None else None
        if objectives is not None and lock is not None:
            with FileLock(lock, poll_interval=_LOCK_SECONDS):
                set_damaged_aside(folder / DATABASE)
        address = f"sqlite:///{folder / DATABASE}" if url is None else database_address(url)
        room = NEW_DATABASE_BYTES if objectives is not None and url is None else None
        full = explained_when_full(folder / DATABASE, room)
        with database_errors(shown), full, _lock(lock, _engine(address), 0):
            storage = _open(address, name, lease_seconds, objectives, lock)
            if lock is None or objectives is None or _is_readable(storage):
                return storage
            storage.engine.dispose()
            set_aside(folder / DATABASE, "a trial cannot be read")
            _engine(address)
            return _open(address, name, lease_seconds, objectives, lock)
    except DiskFullError:
        raise
    except OSError as error:
        raise UserError(f"{error.filename or shown}: {error.strerror}") from error
    except KeyError:
        raise UserError(f"{shown}: no sweep named {name}") from None


def _is_readable(storage: SweepStorage) -> bool:
    """Whether Optuna's tables hold what they should; SQLite does not check values."""
    try:
        storage.trials(), storage.study.user_attrs
    except (ValueError, TypeError, KeyError, AttributeError):
        return False
    return True


def _open(
    address: str,
    name: str,
    lease_seconds: float,
    objectives: Sequence[Objective] | None,
    lock: Path | None,
) -> SweepStorage:
    with warnings.catch_warnings(action="ignore"):
        storage = RDBStorage(address, engine_kwargs=_arguments(address))
    _tune(storage.engine)
    if objectives is None:
        study = optuna.load_study(study_name=name, storage=storage)
    else:
        study = optuna.create_study(
            study_name=name, storage=storage, load_if_exists=True,
            directions=[o.direction for o in objectives],
        )  # fmt: skip
    leases = Leases(storage.engine, study._study_id, lease_seconds)
    reached("study.opened")
    if objectives is not None:
        leases.create_table()
    return SweepStorage(study, leases, lock)


def _engine(address: str) -> sqlalchemy.Engine:
    engine = sqlalchemy.create_engine(address, **_arguments(address))
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # stays with the file
    return engine


def _arguments(address: str) -> dict[str, Any]:
    sqlite = address.startswith("sqlite")
    seconds = {"timeout": _BUSY_SECONDS} if sqlite else {"connect_timeout": _CONNECT_SECONDS}
    return {"connect_args": seconds, **({} if sqlite else {"pool_pre_ping": True})}


def _tune(engine: sqlalchemy.Engine) -> None:
    """WAL with `synchronous=NORMAL` survives a killed process; only a power cut loses the last."""
    if engine.dialect.name != "sqlite":
        return

    def tune(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(engine, "connect", tune)
    engine.dispose()


def database_address(url: str) -> str:
    """The URL as the database library takes it. Raises UserError for one that is not ours."""
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgresql+psycopg"):
        raise UserError(
            f"search.storage={redact(url)} must be null or postgresql://USER@HOST/DATABASE"
        )
    if importlib.util.find_spec("psycopg") is None:
        raise UserError("search.storage: PostgreSQL needs `pip install -e '.[postgres]'`")
    return f"postgresql+psycopg://{rest}"
