"""Trains a student on the outputs or the inner features of a teacher, or on both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from compressbench.core.types import QUANTIZED, TRAINED, Artifact, Context, Outcome
from compressbench.training.fits.schedule import FitOptions, schedule_of
from compressbench.training.teaching import objective


@dataclass(frozen=True)
class Distill(FitOptions):
    """Train the student with a distillation loss; for the other options see `Schedule`.

    `loss` compares the logits of student and teacher, their features, or is a sum of such losses
    (`Mixed`). The teacher is the stage that the recipe names (`teacher: train`); with a list of
    stages, their logits are averaged. The student is the model of the previous stage, or a fresh
    one if the stage has its own `model`.
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
