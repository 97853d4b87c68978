"""Train a student on what its teacher answers, on what it is like inside, or on both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressbench.core.types import QUANTIZED, TRAINED, Artifact, Context, Outcome
from compressbench.training.fits.schedule import FitOptions, schedule_of
from compressbench.training.teaching import objective


@dataclass(frozen=True)
class Distill(FitOptions):
    """Fit the student to `loss`: one between its own and the teacher's logits, one between their
    features, or a sum of several. Options: `Schedule`.

    The teacher is the stage that the recipe names (`teacher: train`); of a list of stages the
    logits are averaged. The student is the model of the stage before, or a fresh one where the
    stage carries a `model` of its own.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    adds: ClassVar[frozenset[str]] = frozenset({TRAINED})
    destroys: ClassVar[frozenset[str]] = QUANTIZED

    loss: Any

    def __post_init__(self) -> None:
        schedule_of(self)
        objective.check_loss(self.loss)

    check_teachers = objective.check_teachers

    def passes(self, train_images: int) -> tuple[int, int]:
        return round(self.epochs * train_images), 0

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        return objective.learn(inputs["model"], inputs, self.loss, 0.0, schedule_of(self), context)
