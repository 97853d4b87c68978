"""MLflow: draining the outbox of a run into it, while the run goes on or later.

Draining again is harmless: a run is found by its tag `compressbench.run`, and a metric with the
same name, step, value and time is kept once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressbench.errors import UserError
from compressbench.outbox import LOCK, RECORDS, Operation, Outbox
from compressbench.redact import HIDDEN, redact

RUN_TAG = "compressbench.run"
NOTE_TAG = "mlflow.note.content"
_RETRY_SECONDS = 5.0
_POLL_SECONDS = 0.25
_WORKER_SECONDS = 5.0  # the worker of a run that just ended may need this long
_NOTE_LIMIT, _PARAMS, _METRICS = 7900, 100, 500  # of MLflow, per request
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
_LIGHT = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"  # else seven processes that nobody needs here
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with the next one: a dead server costs 5 s, not 240
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


@dataclass(frozen=True)
class Place:
    """Where MLflow keeps runs: a server or a database, and the artifact folder beside it."""

    uri: str
    artifacts: str | None = None

    @property
    def shown(self) -> str:
        shown: str = redact(self.uri)
        return shown

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(("http://", "https://"))


def place_of(uri: str) -> Place:
    """The place of a URL, with its credentials. Raises UserError when MLflow cannot take it."""
    scheme = uri.partition("://")[0].partition("+")[0]
    if "://" not in uri or scheme not in _SCHEMES:
        raise UserError(
            f"tracking.url must start with http:// or https://, got {redact(uri)!r} "
            "(MLFLOW_TRACKING_URI is read when it is null)"
        )
    return Place(uri)


def open_commands(place: Place, experiment: str, run: str) -> tuple[str, str]:
    """The command that serves MLflow and the run's link; no command where a server runs already."""
    page = f"#/experiments/{experiment}/runs/{run}?workflowType=machine_learning"
    if place.is_server:
        return "", f"{place.shown.rstrip('/')}/{page}"
    uri = shlex.quote(place.shown)
    command = f"{_LIGHT} mlflow ui --workers 1 --backend-store-uri {uri} --port 5000"
    return command, f"http://127.0.0.1:5000/{page}"


def work(folder: str, artifacts: str) -> int:
    """Drain the outbox of `folder` until the run ends; 0 when MLflow has everything.

    The run's end of the standard input is the lifeline: a byte says that the run is over, its
    closing that the run was killed.
    """
    from filelock import FileLock

    ended = threading.Event()
    threading.Thread(target=_await_end, args=(ended,), daemon=True).start()
    outbox = Outbox(Path(folder))
    place = Place(os.environ["MLFLOW_TRACKING_URI"], artifacts or None)
    with FileLock(outbox.folder / LOCK, timeout=10):
        while True:
            last = ended.is_set()
            problem = _drain(outbox, place, last)
            if last:
                return 1 if problem else 0
            ended.wait(_RETRY_SECONDS if problem else _POLL_SECONDS)


def _await_end(ended: threading.Event) -> None:
    os.read(0, 1)
    ended.set()


def _drain(outbox: Outbox, place: Place, ended: bool) -> str:
    """Log what `place` does not have yet. Returns "", or what is in the way."""
    state = outbox.state(place.shown)
    operations = outbox.read()
    if state["done"] == len(operations) and (not ended or _is_finished(operations)):
        return ""
    _quiet()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = _client(place)
        for operation in operations[state["done"] :]:
            state = {**state, **_apply(client, operation, state, outbox, place)}
            state |= {"done": state["done"] + 1, "problem": ""}
            outbox.mark(place.shown, state)
        if ended and not _is_finished(operations):
            client.set_terminated(state["run"], "KILLED")  # the run died without a word
    except (MlflowException, SQLAlchemyError, OSError) as error:
        problem = _explain(error, place)
        print(redact(f"{place.shown}: {error}"), file=sys.stderr)
        outbox.mark(place.shown, {**state, "problem": problem})
        return problem
    return ""


def _is_finished(operations: Sequence[Operation]) -> bool:
    return bool(operations) and operations[-1]["do"] == "finish"


def _quiet() -> None:
    """Settings that MLflow reads when it is imported; the user's own win."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def _client(place: Place) -> Any:
    """A client; a new local database is set up by one process at a time."""
    from filelock import FileLock
    from mlflow import MlflowClient

    if place.artifacts is None:
        return MlflowClient(place.uri)
    home = Path(place.uri.removeprefix("sqlite:///")).parent
    with FileLock(home / ".mlflow.lock", timeout=60):
        client = MlflowClient(place.uri)
        client.get_experiment("0")
    return client


def _explain(error: Exception, place: Place) -> str:
    from mlflow.exceptions import RestException

    if place.is_server and not isinstance(error, RestException):
        return "is unreachable"
    first = str(redact(str(error))).partition("\n")[0]
    return f"refuses: {first[:200]}"


def _apply(
    client: Any, operation: Operation, state: Mapping[str, Any], outbox: Outbox, place: Place
) -> dict[str, Any]:
    """Do one operation; returns what is new in the state."""
    match operation["do"]:
        case "start":
            return _open_run(client, operation, place)
        case "metrics":
            from mlflow.entities import Metric

            for chunk in _chunks([Metric(*m) for m in operation["metrics"]], _METRICS):
                client.log_batch(state["run"], metrics=chunk)
        case "note":
            client.set_tag(state["run"], NOTE_TAG, operation["text"][:_NOTE_LIMIT])
        case "files":
            for path in operation["paths"]:
                _log_file(client, state["run"], outbox.folder, Path(path))
        case "finish":
            client.set_terminated(state["run"], operation["status"], operation["time"])
        case unknown:
            raise UserError(f"{outbox.records}: unknown operation {unknown!r}: a newer version's?")
    return {}


def _open_run(client: Any, operation: Operation, place: Place) -> dict[str, Any]:
    """The run with this tag, created when there is none, with its parameters."""
    from mlflow.entities import Param

    experiment = _experiment(client, operation["experiment"], place.artifacts)
    wanted = f"tags.`{RUN_TAG}` = '{operation['tags'][RUN_TAG]}'"
    found = client.search_runs([experiment], wanted)
    run = found[0] if found else client.create_run(
        experiment, operation["time"], operation["tags"], operation["name"]
    )  # fmt: skip
    for chunk in _chunks([Param(*item) for item in operation["params"].items()], _PARAMS):
        client.log_batch(run.info.run_id, params=chunk)
    return {"experiment": experiment, "run": run.info.run_id}


def _experiment(client: Any, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            created: str = client.create_experiment(name, artifact_location=artifacts)
            return created
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another run was quicker
            if found is None:
                raise
    identity: str = found.experiment_id
    return identity


def _log_file(client: Any, run: str, folder: Path, path: Path) -> None:
    parent = None if path.parent == Path() else path.parent.as_posix()
    if (folder / path).is_dir():
        client.log_artifacts(run, str(folder / path), path.as_posix())
    else:
        client.log_artifact(run, str(folder / path), parent)


def _chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    return (list(items[i : i + size]) for i in range(0, len(items), size))


def sync(argv: Sequence[str]) -> int:
    """`compressbench sync [--to URL] [RUN ...]`: log what a server missed. 0 when all is there."""
    parser = argparse.ArgumentParser("compressbench sync", description=sync.__doc__)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders; all when none is named")
    parser.add_argument("--to", default="", help="another MLflow server or database")
    arguments = parser.parse_args(argv)
    folders = arguments.runs or _run_folders()
    if not folders:
        print("no run folders under runs/ or multirun/")
    return max((_sync(Outbox(folder.resolve()), arguments.to) for folder in folders), default=0)


def _run_folders() -> list[Path]:
    return sorted(p.parent for top in ("runs", "multirun") for p in Path(top).rglob(RECORDS))


def _sync(outbox: Outbox, to: str) -> int:
    from filelock import FileLock, Timeout

    operations = outbox.read()
    if not operations:
        print(f"{outbox.folder}: nothing was to be logged here")
        return 0 if outbox.folder.is_dir() else 1
    place = _target(operations, to)
    before = outbox.state(place.shown)["done"]
    try:
        with FileLock(outbox.folder / LOCK, timeout=_WORKER_SECONDS):
            problem = _drain(outbox, place, ended=True)
    except Timeout:
        problem = "is still being written to by the run itself"
    if problem:
        print(f"{outbox.folder}: {place.shown} {problem}", file=sys.stderr)
        return 1
    state = outbox.state(place.shown)
    logged = state["done"] - before
    print(f"{outbox.folder}: {logged} of {len(operations)} operations logged to {place.shown}")
    print("  " + "  ".join(filter(None, open_commands(place, state["experiment"], state["run"]))))
    return 0


def _target(operations: Sequence[Operation], to: str) -> Place:
    """Where an outbox goes: `to`, or where its run wanted it."""
    if to:
        return place_of(to)
    start = next(o for o in operations if o["do"] == "start")
    named = os.environ.get("MLFLOW_TRACKING_URI", "")
    if redact(named) == start["target"]:
        return Place(named)
    if f"{HIDDEN}@" in start["target"]:
        raise UserError(f"{start['target']}: credentials are not stored: give the URL with --to")
    return Place(start["target"], start["artifacts"])
