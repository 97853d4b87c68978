"""Builds the operations of an outbox: plain values that MLflow accepts."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressbench.core.redact import redact
from compressbench.core.trees import leaves
from compressbench.core.types import Step
from compressbench.tracking.mlflow_client import TrackingStore
from compressbench.tracking.outbox_lines import Operation

_TEXT_LIMIT = 500
_STATUSES = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class Opening:
    """Where a run, trial or sweep is logged, and its name, tags and config."""

    store: TrackingStore
    experiment: str
    name: str
    tags: Mapping[str, str]
    config: Mapping[str, Any]

    def operation(self, kind: str, tags: Mapping[str, str]) -> Operation:
        """The start of a "run", "trial" or "sweep" (`kind`), with extra tags and the config."""
        return {
            "do": "start",
            "kind": kind,
            "target": self.store.shown,
            "artifacts": self.store.artifacts,
            "experiment": self.experiment,
            "name": self.name,
            "tags": {**self.tags, **tags},
            "params": flatten(redact(self.config)),
            "time": now(),
        }


def end_operations(status: str, folder: Path, files: Sequence[Path]) -> list[Operation]:
    """Operations that log `files` (inside `folder`) and end the run.

    Raises ValueError unless `status` is FINISHED, FAILED or KILLED.
    """
    if status not in _STATUSES:
        raise ValueError(f"status must be one of {', '.join(_STATUSES)}, got {status!r}")
    return [
        {"do": "files", "paths": [str(f.resolve().relative_to(folder)) for f in files]},
        {"do": "finish", "status": status, "time": now()},
    ]


def step_operation(step: Step) -> Operation:
    """Metrics of a stage: its figures at the stage's index as step, its history at each epoch."""
    at = now()
    taken = {**step.measurement.figures, "stage/seconds": step.seconds}
    figures: list[list[Any]] = [[allowed(k), float(v), at, step.index] for k, v in taken.items()]
    history: list[list[Any]] = [
        [allowed(f"history/{step.name}/{name}"), float(value), at, epoch]
        for name, values in step.history.items()
        for epoch, value in enumerate(values)
    ]
    metrics = [m for m in (*figures, *history) if math.isfinite(m[1])]
    return {"do": "metrics", "metrics": metrics, "stage": step.index}


def flatten(config: Mapping[str, Any]) -> dict[str, str]:
    """Nested settings as params, such as `recipe.stages.prune.sparsity` -> "0.5"; lists as JSON."""
    return {allowed(name): _text(value) for name, value in leaves(config).items() if name}


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[:_TEXT_LIMIT]


def allowed(name: str) -> str:
    """Replace characters that MLflow does not allow in a name; strip dots and slashes."""
    return re.sub(r"/+", "/", re.sub(r"[^\w.\-/ :]", "_", name)).strip("./")[:250]


def now() -> int:
    """Unix time in milliseconds."""
    return round(time.time() * 1000)
