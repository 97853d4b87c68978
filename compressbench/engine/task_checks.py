"""Whether a stage can do its work with the task of the data."""

from __future__ import annotations

from compressbench.core.errors import UserError
from compressbench.core.types import DataSpec, Stage
from compressbench.tasks.choice import task_of

_MANY_SAMPLES = 10**6


def check_task(stage: Stage, spec: DataSpec, where: str, *, taught: bool, taken: bool) -> None:
    """Raise UserError for labels that a stage would need and the data do not have.

    `taught` says whether the stage has a teacher, `taken` whether it takes its model as it is.
    """
    task = task_of(spec)
    smoothing = getattr(stage, "label_smoothing", 0.0)
    if smoothing and not task.distribution:
        raise UserError(
            f"{where}.label_smoothing={smoothing}: only labels of classes can be smoothed, and the "
            f"targets of {task.name} are numbers"
        )
    if not task.learns and not taught and not taken and stage.passes(_MANY_SAMPLES)[0] > 0:
        raise UserError(
            f"{where} trains, but the data have no labels: take a trained model "
            "(model.checkpoint=FILE), leave the stage out, or name a teacher "
            f"({where}.teacher=train with a loss)"
        )
