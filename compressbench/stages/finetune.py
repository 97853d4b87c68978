"""Train on from where the model stands; masked weights stay zero."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from compressbench.checks import check_share
from compressbench.core import TRAINED, Artifact, Context, DataSpec, Outcome, UserError
from compressbench.stages import teaching
from compressbench.stages.schedule import Optimizer, Schedule
from compressbench.stages.train import GRIDS, cross_entropy, descend


@dataclass(frozen=True)
class Finetune:
    """Training of a model that is trained already: on the labels, with `label_smoothing`, or on
    the distillation `loss`, for which the recipe names the `teacher`. Options: `Schedule`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset()
    destroys: ClassVar[frozenset[str]] = GRIDS

    epochs: float
    batch_size: int
    optimizer: Optimizer
    warmup: float = 0.0
    label_smoothing: float = 0.0
    loss: Any = None

    def __post_init__(self) -> None:
        self.schedule()
        check_share("label_smoothing", self.label_smoothing)
        if self.loss is not None:
            teaching.check_loss(self.loss)
            if self.label_smoothing:
                raise UserError(
                    f"label_smoothing={self.label_smoothing} has no meaning with a loss: set one"
                )

    def schedule(self) -> Schedule:
        return Schedule(self.epochs, self.batch_size, self.optimizer, self.warmup)

    def check_teacher(self, model: nn.Module, teacher: nn.Module, spec: DataSpec) -> None:
        """Refuse before anything runs features that cannot be compared."""
        teaching.check_teacher(self.loss, model, teacher, spec)

    def passes(self, train_images: int) -> tuple[int, int]:
        images = round(self.epochs * train_images)
        return images, 0 if self.loss is None else images

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        if self.loss is not None:
            return teaching.learn(inputs, self.loss, self.schedule(), context)
        loss = cross_entropy(self.label_smoothing)
        return descend(inputs["model"], loss, self.schedule(), context)
