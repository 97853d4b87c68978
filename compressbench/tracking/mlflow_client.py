"""Where MLflow keeps runs, and the client that reaches it."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressbench.core.errors import UserError
from compressbench.core.redact import redact
from compressbench.tracking.guarded_client import GuardedClient
from compressbench.tracking.local_database import ready, remove_quoted_folder, sqlite_uri
from compressbench.tracking.reasons import http_reason, reason

RUN_TAG = "compressbench.run"
SWEEP_TAG = "compressbench.sweep"
FOLDER_TAG = "compressbench.folder"
KIND_TAG = "compressbench.kind"
NOTE_TAG = "mlflow.note.content"
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
_LIGHT = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"  # saves seven processes that are not needed
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with the timeout: a dead server costs 5 s, not 240 s
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",  # figures go to the host that was named, or nowhere
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True)
class TrackingStore:
    """Where MLflow keeps runs: a server, or a database with an artifact folder."""

    uri: str
    artifacts: str | None = None

    @property
    def shown(self) -> str:
        """The URI without credentials."""
        shown: str = redact(self.uri)
        return shown

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))

    @property
    def folder(self) -> Path | None:
        """The folder of a database file."""
        if not self.uri.startswith("sqlite"):
            return None
        from sqlalchemy.engine import make_url

        return Path(make_url(self.uri).database or "").parent


def tracking_store(uri: str) -> TrackingStore:
    """The store at a URL, which may contain credentials. Raises UserError for an unknown scheme."""
    scheme = uri.partition("://")[0].partition("+")[0]
    if "://" not in uri or scheme not in _SCHEMES:
        raise UserError(
            f"tracking.url must start with http:// or https://, got {redact(uri)!r} "
            "(MLFLOW_TRACKING_URI is read when it is null)"
        )
    return TrackingStore(uri)


def open_commands(store: TrackingStore, experiment: str, run: str) -> tuple[str, str]:
    """The command that starts MLflow ("" for a server, which already runs), and the run's link."""
    page = f"#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"
    if store.is_server:
        return "", f"{store.shown.rstrip('/')}/{page}"
    uri = shlex.quote(store.shown)
    command = f"{_LIGHT} mlflow ui --workers 1 --backend-store-uri {uri} --port 5000"
    return command, f"http://127.0.0.1:5000/{page}"


def chart_link(store: TrackingStore, experiment: str, view: str) -> str:
    """The link of a saved view in MLflow's own charts."""
    page = (
        f"#/experiments/{experiment}/runs?workflowType=machine_learning"
        f"&compareRunsMode=CHART&viewStateShareKey={view}"
    )
    host = store.shown.rstrip("/") if store.is_server else "http://127.0.0.1:5000"
    return f"{host}/{page}"


class NoMLflowError(OSError):
    """A server answers, but does not keep what it is sent."""

    def __init__(self) -> None:
        super().__init__("its answers are not those of MLflow")


def troubles() -> tuple[type[Exception], ...]:
    """What is raised if MLflow is unreachable or rejects a request. Imports MLflow."""
    quiet()
    from sqlite3 import Error

    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError, Error, ParseError, MemoryError, UserError


def is_refusal(error: Exception, store: TrackingStore) -> bool:
    """Whether only this request is rejected, so that those of other runs may still succeed."""
    from mlflow.exceptions import MlflowException, RestException

    if isinstance(error, UserError):
        return True
    if store.is_server:
        return isinstance(error, RestException)
    return isinstance(error, MlflowException) and error.error_code != "TEMPORARILY_UNAVAILABLE"


def quiet() -> None:
    """Set the defaults that MLflow reads on import, unless the user has set them."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


@dataclass
class Connection:
    """A client of a store, opened when it is first needed, and anew after a problem."""

    store: TrackingStore
    _client: GuardedClient | None = None

    def client(self) -> GuardedClient:
        if self._client is None:
            self._client = client_of(self.store)
        return self._client

    @property
    def notice(self) -> str:
        """What is to be said about the database, or ""."""
        return "" if self._client is None else self._client.notice

    def close(self) -> None:
        self._client = None


def client_of(store: TrackingStore) -> GuardedClient:
    """A client of the store, whose database is made if it is a local one that is not there."""
    from mlflow import MlflowClient
    from sqlalchemy.engine import make_url

    if not store.uri.startswith("sqlite"):
        return GuardedClient(MlflowClient(store.uri))
    if "%" in store.uri and make_url("sqlite:///%3F").database != "?":
        raise OSError("a path with '?' or '%' needs SQLAlchemy 2.1 or newer")
    name = make_url(store.uri).database
    notice = ready(Path(name)) if name and name != ":memory:" else ""
    client = MlflowClient(store.uri)
    client._tracking_client.store.engine.dispose()  # its connections may be to a former file
    remove_quoted_folder(store.uri)
    return GuardedClient(client, notice)


def explain(error: Exception, store: TrackingStore) -> str:
    """The problem in a few words, to follow the name of the store in a message."""
    text = str(redact(str(error)))
    if isinstance(error, UserError):
        return text
    if store.is_server and not is_refusal(error, store):
        return http_reason(text)
    return reason(error, text, store.folder)


def sweep_folders(experiment: str) -> list[Path]:
    """Folders with the `sweep.json` of each sweep of an experiment, given by its name or id.

    For a sweep on this machine it is the folder of the sweep; for others, `sweep.json` is
    downloaded. Uses the store at MLFLOW_TRACKING_URI, or else `mlflow.db` in the working folder.
    Raises UserError if MLflow cannot be read.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(Path("mlflow.db").absolute())
    if uri.startswith("sqlite:") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return []
    store, caught = tracking_store(uri), troubles()
    try:
        client = client_of(store)
        found = client.get_experiment_by_name(experiment)
        if found is None and experiment.isdigit():
            found = client.get_experiment(experiment)
        if found is None:
            return []
        runs = client.search_runs([found.experiment_id], f"tags.`{KIND_TAG}` = 'sweep'")
        return [_sweep_folder(client, run) for run in runs]
    except caught as error:
        raise UserError(f"{experiment}: {store.shown} {explain(error, store)}") from error


def _sweep_folder(client: Any, run: Any) -> Path:
    folder = Path(run.data.tags[FOLDER_TAG])
    if (folder / "sweep.json").is_file():
        return folder
    return Path(client.download_artifacts(run.info.run_id, "sweep.json")).parent
