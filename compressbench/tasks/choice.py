"""The task of a dataset, and its metric."""

from __future__ import annotations

from typing import Any

from compressbench.core.errors import UserError
from compressbench.core.nearest import nearest
from compressbench.core.task import Task
from compressbench.core.types import DataSpec
from compressbench.tasks.classification import CLASSIFICATION


def task_of(spec: DataSpec) -> Task:
    """The task of a dataset: classification, unless it names another."""
    return CLASSIFICATION if spec.task is None else spec.task


def check_task(task: Any, where: str) -> None:
    """Raise UserError for what is no task."""
    if not callable(getattr(task, "score", None)):
        raise UserError(f"{where} must be a task, such as task@{where}=regression, got {task!r}")


def check_metric(spec: DataSpec) -> None:
    """Raise UserError unless the task of the dataset has its metric."""
    task = task_of(spec)
    if spec.metric not in task.metrics:
        raise UserError(
            f"dataset.metric must be one of {', '.join(task.metrics)} for {task.name}, got "
            f"{spec.metric!r}{nearest(spec.metric, task.metrics)}"
        )
