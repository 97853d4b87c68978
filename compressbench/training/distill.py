"""Train a student on what its teacher answers, on what it is like inside, or on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from compressbench.core.types import TRAINED, Artifact, Context, DataSpec, Outcome
from compressbench.training.fits.schedule import Optimizer, Schedule
from compressbench.training.teaching import objective
from compressbench.training.train import GRIDS


@dataclass(frozen=True)
class Distill:
    """Fit the student to `loss`: one between its own and the teacher's logits, one between their
    features, or a sum of several. Options: `Schedule`.

    The teacher is the stage that the recipe names (`teacher: train`); of a list of stages the
    logits are averaged. The student is the model of the stage before, or a fresh one where the
    stage carries a `model` of its own.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    adds: ClassVar[frozenset[str]] = frozenset({TRAINED})
    destroys: ClassVar[frozenset[str]] = GRIDS

    loss: Any
    epochs: float
    batch_size: int
    optimizer: Optimizer
    warmup: float = 0.0

    def __post_init__(self) -> None:
        self.schedule()
        objective.check_loss(self.loss)

    def schedule(self) -> Schedule:
        return Schedule(self.epochs, self.batch_size, self.optimizer, self.warmup)

    def check_teachers(
        self, model: nn.Module, teachers: Sequence[nn.Module], spec: DataSpec
    ) -> None:
        """Refuse before anything runs features that cannot be compared."""
        objective.check_teachers(self.loss, model, teachers, spec)

    def passes(self, train_images: int) -> tuple[int, int]:
        return round(self.epochs * train_images), 0

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        return objective.learn(inputs["model"], inputs, self.loss, 0.0, self.schedule(), context)
