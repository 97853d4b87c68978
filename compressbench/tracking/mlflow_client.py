"""Drains the outbox of a run into MLflow, during the run or later.

Draining is idempotent: a run is found by its tag `compressbench.run`, and MLflow keeps a metric
with the same name, step, value and time only once.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressbench.core.errors import UserError
from compressbench.core.kill_points import reached
from compressbench.core.redact import redact
from compressbench.tracking.outbox import LOCK, Operation, Outbox

RUN_TAG = "compressbench.run"
SWEEP_TAG = "compressbench.sweep"
FOLDER_TAG = "compressbench.folder"
KIND_TAG = "compressbench.kind"
NOTE_TAG = "mlflow.note.content"
RETRY_SECONDS = 5.0
_POLL_SECONDS = 0.25
NOTE_LIMIT, _PARAMS, METRICS = 7900, 100, 500  # limits of MLflow per request
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
_LIGHT = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"  # saves seven processes that are not needed
_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with the timeout: a dead server costs 5 s, not 240 s
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
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


def work(folder: str, artifacts: str) -> int:
    """Drain the outbox of `folder` until the run ends; return 0 if MLflow then has everything.

    Standard input signals the end: the run writes a byte when it is over, and the pipe closes if
    the run is killed.
    """
    from filelock import FileLock

    ended = threading.Event()
    threading.Thread(target=await_end, args=(ended,), daemon=True).start()
    outbox = Outbox(Path(folder))
    store = TrackingStore(os.environ["MLFLOW_TRACKING_URI"], artifacts or None)
    with FileLock(outbox.folder / LOCK, timeout=10):
        while True:
            last = ended.is_set()
            problem = drain(outbox, store, last)
            if last:
                return 1 if problem else 0
            ended.wait(RETRY_SECONDS if problem else _POLL_SECONDS)


def await_end(ended: threading.Event) -> None:
    """Set `ended` when standard input has a byte or is closed."""
    os.read(0, 1)
    ended.set()


def drain(outbox: Outbox, store: TrackingStore, ended: bool) -> str:
    """Log the operations that `store` does not have yet; return "" or the problem."""
    state = outbox.state(store.shown)
    operations = outbox.read()
    if state["done"] == len(operations) and (not ended or is_finished(operations)):
        return ""
    caught = troubles()
    try:
        client = client_of(store)
        for operation in operations[state["done"] :]:
            state = {**state, **apply(client, operation, state, outbox, store)}
            reached("tracking.applied")
            state |= {"done": state["done"] + 1, "problem": ""}
            outbox.mark(store.shown, state)
            reached("tracking.marked")
        if ended and not is_finished(operations):
            client.set_terminated(state["run"], "KILLED")  # the run was killed before its end
    except caught as error:
        problem = explain(error, store)
        print(redact(f"{store.shown}: {error}"), file=sys.stderr)
        outbox.mark(store.shown, {**state, "problem": problem})
        return problem
    return ""


def is_finished(operations: Sequence[Operation]) -> bool:
    """Whether the last operation is the end of the run."""
    return bool(operations) and operations[-1]["do"] == "finish"


def troubles() -> tuple[type[Exception], ...]:
    """The exceptions of MLflow if it is unreachable or rejects a request. Imports MLflow."""
    quiet()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, OSError


def is_refusal(error: Exception, store: TrackingStore) -> bool:
    """Whether MLflow answered and rejected the request, so that other runs may still succeed."""
    from mlflow.exceptions import MlflowException, RestException

    return isinstance(error, RestException if store.is_server else MlflowException)


def quiet() -> None:
    """Set the defaults that MLflow reads on import, unless the user has set them."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)


def client_of(store: TrackingStore) -> Any:
    """A client of the store; only one process at a time sets up a new local database."""
    from filelock import FileLock
    from mlflow import MlflowClient

    if store.artifacts is None:
        return MlflowClient(store.uri)
    home = Path(store.uri.removeprefix("sqlite:///")).parent
    with FileLock(home / ".mlflow.lock", timeout=60):
        client = MlflowClient(store.uri)
        client.get_experiment("0")
    return client


def explain(error: Exception, store: TrackingStore) -> str:
    """The problem in a few words, to follow the name of the store in a message."""
    if store.is_server and not is_refusal(error, store):
        return "is unreachable"
    first = str(redact(str(error))).partition("\n")[0]
    return f"refuses: {first[:200]}"


def apply(
    client: Any,
    operation: Operation,
    state: Mapping[str, Any],
    outbox: Outbox,
    store: TrackingStore,
) -> dict[str, Any]:
    """Apply one operation; return the changes of the state."""
    match operation["do"]:
        case "start":
            return _open_run(client, operation, store)
        case "metrics":
            from mlflow.entities import Metric

            for chunk in chunks([Metric(*m) for m in operation["metrics"]], METRICS):
                client.log_batch(state["run"], metrics=chunk)
        case "note":
            client.set_tag(state["run"], NOTE_TAG, operation["text"][:NOTE_LIMIT])
        case "files":
            for path in operation["paths"]:
                _log_file(client, state["run"], outbox.folder, Path(path))
        case "finish":
            client.set_terminated(state["run"], operation["status"], operation["time"])
        case unknown:
            raise UserError(f"{outbox.records}: unknown operation {unknown!r}; a newer version's?")
    return {}


def _open_run(client: Any, operation: Operation, store: TrackingStore) -> dict[str, Any]:
    """Find the run with this tag, or create it, and log its parameters."""
    from mlflow.entities import Param

    experiment = _experiment(client, operation["experiment"], store.artifacts)
    wanted = f"tags.`{RUN_TAG}` = '{operation['tags'][RUN_TAG]}'"
    runs = client.search_runs([experiment], wanted)
    run = runs[0] if runs else client.create_run(
        experiment, operation["time"], operation["tags"], operation["name"]
    )  # fmt: skip
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, "RUNNING")  # the run is resumed after a crash
    reached("tracking.run_made")
    logged = run.data.params  # MLflow does not allow a logged value to change, such as n_trials
    new = [Param(*item) for item in operation["params"].items() if item[0] not in logged]
    for chunk in chunks(new, _PARAMS):
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
            found = client.get_experiment_by_name(name)  # another run has just created it
            if found is None:
                raise
    identity: str = found.experiment_id
    return identity


def _log_file(client: Any, run: str, folder: Path, path: Path) -> None:
    parent = None if path.parent == Path() else path.parent.as_posix()
    if not (folder / path).exists():
        print(f"{folder / path}: no longer exists and is not logged", file=sys.stderr)
    elif (folder / path).is_dir():
        client.log_artifacts(run, str(folder / path), path.as_posix())
    else:
        client.log_artifact(run, str(folder / path), parent)


def chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Split a sequence into lists of at most `size` items."""
    return (list(items[i : i + size]) for i in range(0, len(items), size))


def sweep_folders(experiment: str) -> list[Path]:
    """Folders with the `sweep.json` of each sweep of an experiment, given by its name or id.

    For a sweep on this machine it is the folder of the sweep; for others, `sweep.json` is
    downloaded. Uses the store at MLFLOW_TRACKING_URI, or else `mlflow.db` in the working folder.
    Raises UserError if MLflow cannot be read.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"
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
