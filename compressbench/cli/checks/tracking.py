"""Tracking: whether MLflow answers, and takes what is logged; nothing is left in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

from compressbench.cli.checks.databases import sqlite_problem
from compressbench.cli.checks.finding import BROKEN, FINE, LOOK, Finding
from compressbench.cli.checks.folders import existing
from compressbench.core.errors import UserError
from compressbench.core.redact import redact
from compressbench.tracking.mlflow_client import (
    TrackingStore,
    client_of,
    explain,
    tracking_store,
    troubles,
)

_TRACKERS = "compressbench.tracking.trackers."
_SUBJECT, _NO_RUN = "tracking", "0" * 32
_SECONDS = 4
_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_SECONDS)}
_COMPLETE = "SELECT version_num FROM alembic_version"  # missing in one that is half made
_LATER = "runs go on without it: `compressbench sync` logs them later"
_ADVICE = f"start it, or look at its address, credentials and proxies; {_LATER}"


def check(settings: Mapping[str, Any]) -> Iterator[Finding]:
    """Ask the tracker of the config for its experiments, and try to write."""
    config = settings["tracking"]
    match str(config["_target_"]).removeprefix(_TRACKERS):
        case "NoTracking":
            yield Finding(_SUBJECT, FINE, "none")
        case "Local":
            yield _local(Path(config["folder"]).resolve())
        case "Server":
            yield _server(config["url"] or os.environ.get("MLFLOW_TRACKING_URI", ""))
        case own:
            yield Finding(_SUBJECT, LOOK, f"{own} is code of your own", "try it with trainer=debug")


def _local(home: Path) -> Finding:
    path = home / "mlflow.db"
    if os.path.lexists(path):
        return _database(path, f"sqlite:///{path}")
    place = existing(home)
    if os.access(place, os.W_OK):
        return Finding(_SUBJECT, FINE, f"{path} will be made by the first run")
    advice = "make it writable, or give tracking.folder=FOLDER or tracking=none"
    return Finding(_SUBJECT, BROKEN, f"{path} cannot be made: {place} is not writable", advice)


def _server(uri: str) -> Finding:
    try:
        store = tracking_store(uri)
    except UserError as error:
        return Finding(_SUBJECT, BROKEN, str(error), "set MLFLOW_TRACKING_URI=http://HOST:PORT")
    scheme, _, path = uri.partition(":///")
    return _database(Path(path), uri) if scheme == "sqlite" else _asked(store)


def _database(path: Path, uri: str) -> Finding:
    """A database of SQLite: MLflow would write into one that is not complete."""
    problem = sqlite_problem(path, _COMPLETE)
    if not problem:
        return _asked(TrackingStore(uri))
    advice = f"end the program that holds it, or move it away: mv {path} {path}.broken"
    return Finding(_SUBJECT, BROKEN, f"{path}: {problem}", f"{advice}; {_LATER}")


def _silence(uri: str) -> str:
    """Why an http server gives no answer, or "": found before MLflow takes seconds to load."""
    parts = urlsplit(uri)
    address = f"http://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/health"
    try:
        urlopen(address, timeout=_SECONDS).close()
    except HTTPError:
        return ""
    except HTTPException as error:
        return f"does not speak HTTP: {error!r}"
    except OSError as error:
        return f"is unreachable: {getattr(error, 'reason', error)}"
    return ""


def _asked(store: TrackingStore) -> Finding:
    if store.uri.startswith("http://") and (silence := _silence(store.uri)):
        return Finding(_SUBJECT, BROKEN, f"{store.shown} {silence}", _ADVICE)
    os.environ.update(_LIMITS)  # read when MLflow is imported
    caught = troubles()
    try:
        client = client_of(store)
        client.search_experiments(max_results=1)
        if store.is_server:
            _write(client, caught)
    except caught as error:
        return Finding(_SUBJECT, BROKEN, f"{store.shown} {_problem(error, store)}", _ADVICE)
    return Finding(_SUBJECT, FINE, f"{store.shown} answers, and can be written")


def _write(client: Any, caught: tuple[type[Exception], ...]) -> None:
    """Tag a run that is not there: a server that lets us write answers just that."""
    try:
        client.set_tag(_NO_RUN, "compressbench.doctor", "")
    except caught as error:
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise


def _problem(error: Exception, store: TrackingStore) -> str:
    text = explain(error, store)
    reason = re.findall(r"Caused by \w+\((.*?)\)*$", redact(str(error)).partition("\n")[0])
    return f"{text}: {reason[0][:200]}" if reason else text
