"""Applies the operations of an outbox to MLflow, each so that it may be applied again.

A run is found by its tag `compressbench.run`, and MLflow keeps a metric with the same name, step,
value and time only once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from compressbench.core.errors import UserError
from compressbench.core.kill_points import reached
from compressbench.tracking.mlflow_client import NOTE_TAG, RUN_TAG, NoMLflowError, TrackingStore
from compressbench.tracking.outbox import Outbox
from compressbench.tracking.outbox_lines import Operation

NOTE_LIMIT = 7900  # characters of a tag in MLflow, less a reserve
_PARAMS, _METRICS = 100, 500  # the most of one request


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

            for chunk in _chunks([Metric(*m) for m in operation["metrics"]], _METRICS):
                client.log_batch(_run(state), metrics=chunk)
        case "note":
            client.set_tag(_run(state), NOTE_TAG, operation["text"][:NOTE_LIMIT])
        case "files":
            for path in operation["paths"]:
                _log_file(client, _run(state), outbox.folder, Path(path))
        case "finish":
            _finish(client, operation, state, outbox)
        case unknown:
            raise UserError(f"{outbox.records}: unknown operation {unknown!r}; a newer version's?")
    return {}


def _run(state: Mapping[str, Any]) -> str:
    """The id of the run. Raises UserError if the record of its start was left out."""
    if "run" not in state:
        raise UserError("the record of the run's start is damaged, so nothing can be logged")
    run: str = state["run"]
    return run


def _open_run(client: Any, operation: Operation, store: TrackingStore) -> dict[str, Any]:
    """Find the run with this tag, or create it, and log its parameters."""
    from mlflow.entities import Param

    experiment = _experiment(client, operation["experiment"], store.artifacts)
    tag = operation["tags"][RUN_TAG]
    runs = runs_tagged(client, experiment, tag) or _create(client, experiment, operation)
    run = runs[0]
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, "RUNNING")  # the run is resumed after a crash
    reached("tracking.run_made")
    logged = run.data.params  # MLflow does not allow a logged value to change, such as n_trials
    new = [Param(*item) for item in operation["params"].items() if item[0] not in logged]
    for chunk in _chunks(new, _PARAMS):
        client.log_batch(run.info.run_id, params=chunk)
    state = {"experiment": experiment, "run": run.info.run_id}
    return state if operation.get("kind") == "sweep" else {**state, "tag": tag}


def runs_tagged(client: Any, experiment: str, tag: str) -> list[Any]:
    """The runs that were created for `tag`, the earliest first; all but one are doubles."""
    runs = client.search_runs([experiment], f"tags.`{RUN_TAG}` = '{tag}'")
    return sorted(runs, key=lambda run: (run.info.start_time, run.info.run_id))


def _create(client: Any, experiment: str, operation: Operation) -> list[Any]:
    """Create a run. If others were created for it at the same time, the earliest one stays.

    A second machine does that, and a proxy that answers 502 after the server has obeyed.
    """
    created = client.create_run(experiment, operation["time"], operation["tags"], operation["name"])
    if not created.info.run_id:
        raise NoMLflowError
    runs = runs_tagged(client, experiment, operation["tags"][RUN_TAG]) or [created]
    if created.info.run_id != runs[0].info.run_id:
        client.delete_run(created.info.run_id)
    return runs


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
    if not found.experiment_id:
        raise NoMLflowError
    identity: str = found.experiment_id
    return identity


def _log_file(client: Any, run: str, folder: Path, path: Path) -> None:
    """Log a file or a folder that is inside the run folder."""
    here = folder / path
    if here.is_symlink() or not here.resolve().is_relative_to(folder.resolve()):
        print(f"{here}: is outside of the run folder and is not logged", file=sys.stderr)
    elif here.is_dir():
        for inner in sorted(here.iterdir()):
            _log_file(client, run, folder, inner.relative_to(folder))
    elif here.is_file():
        parent = None if path.parent == Path() else path.parent.as_posix()
        client.log_artifact(run, here, parent)
    else:
        print(f"{here}: no longer exists and is not logged", file=sys.stderr)


def _finish(client: Any, operation: Operation, state: Mapping[str, Any], outbox: Outbox) -> None:
    """End the run and check that the server has kept it; delete runs that were created twice.

    MLflow takes an empty answer, such as a proxy that is cut gives, for a success.
    """
    run = _run(state)
    client.set_terminated(run, operation["status"], operation["time"])
    kept = client.get_run(run)
    if (kept.info.run_id, kept.info.status) != (run, operation["status"]):
        raise NoMLflowError
    metrics = (o["metrics"] for o in outbox.read() if o["do"] == "metrics")
    if {metric[0] for many in metrics for metric in many} - set(kept.data.metrics):
        raise NoMLflowError
    if "tag" in state:
        for double in runs_tagged(client, state["experiment"], state["tag"]):
            if double.info.run_id != run:
                client.delete_run(double.info.run_id)


def _chunks(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    return (list(items[i : i + size]) for i in range(0, len(items), size))
