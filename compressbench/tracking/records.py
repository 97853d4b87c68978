"""What a run logs, as operations of an outbox: plain values that MLflow takes."""

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
from compressbench.tracking.outbox import Operation

_TEXT_LIMIT = 500
_STATUSES = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class Opening:
    """Where a run, a trial or a sweep is logged, and what is known of it at the start."""

    store: TrackingStore
    experiment: str
    name: str
    tags: Mapping[str, str]
    config: Mapping[str, Any]

    def operation(self, kind: str, tags: Mapping[str, str]) -> Operation:
        """The start of a run, trial or sweep (`kind`), with further tags; the config as params."""
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
    """The files, which are inside `folder`, and the end: FINISHED, FAILED or KILLED."""
    if status not in _STATUSES:
        raise ValueError(f"status must be one of {', '.join(_STATUSES)}, got {status!r}")
    return [
        {"do": "files", "paths": [str(f.resolve().relative_to(folder)) for f in files]},
        {"do": "finish", "status": status, "time": now()},
    ]


def step_operation(step: Step) -> Operation:
    """Figures with the stage's index as step; the training history with the epoch as step."""
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
    """Nested settings as `recipe.stages.prune.sparsity` -> "0.5"; lists as JSON."""
    return {allowed(name): _text(value) for name, value in leaves(config).items() if name}


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text[:_TEXT_LIMIT]


def allowed(name: str) -> str:
    """The name as MLflow takes it: few characters, and no way out of a folder."""
    return re.sub(r"/+", "/", re.sub(r"[^\w.\-/ :]", "_", name)).strip("./")[:250]


def now() -> int:
    """Unix time in milliseconds."""
    return round(time.time() * 1000)
