"""Train a student on what its teacher answers."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressbench.core import TRAINED, Artifact, Context, DistillationLoss, Outcome, UserError
from compressbench.stages.schedule import BatchLoss, Optimizer, Schedule
from compressbench.stages.train import GRIDS, cross_entropy, descend


@dataclass(frozen=True)
class Distill:
    """Fit the student to `loss` of its own and the teacher's logits. Options: `Schedule`.

    The teacher is the stage that the recipe names (`teacher: train`). The student is the model
    of the stage before, or a fresh one where the stage carries a `model` of its own.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    adds: ClassVar[frozenset[str]] = frozenset({TRAINED})
    destroys: ClassVar[frozenset[str]] = GRIDS

    loss: DistillationLoss
    epochs: float
    batch_size: int
    optimizer: Optimizer
    warmup: float = 0.0

    def __post_init__(self) -> None:
        self.schedule()
        if not callable(self.loss):
            raise UserError(f"loss must be a distillation loss, got {self.loss!r}")

    def schedule(self) -> Schedule:
        return Schedule(self.epochs, self.batch_size, self.optimizer, self.warmup)

    def passes(self, train_images: int) -> tuple[int, int]:
        images = round(self.epochs * train_images)
        return images, images

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        teacher = deepcopy(inputs["teacher"].model).eval().requires_grad_(False)
        loss = against(teacher.to(context.runtime.device), self.loss)
        return descend(inputs["model"], loss, self.schedule(), context)


def loss_of(
    loss: DistillationLoss | None,
    label_smoothing: float,
    inputs: Mapping[str, Artifact],
    context: Context,
) -> BatchLoss:
    """Cross-entropy with the labels, or `loss` against the teacher among `inputs`."""
    if loss is None:
        return cross_entropy(label_smoothing)
    if "teacher" not in inputs:
        raise UserError("a distillation loss needs a teacher: the name of an earlier stage")
    teacher = deepcopy(inputs["teacher"].model).eval().requires_grad_(False)
    return against(teacher.to(context.runtime.device), loss)


def against(teacher: nn.Module, loss: DistillationLoss) -> BatchLoss:
    """The loss of `fit_` against a frozen teacher that sees the same augmented batch."""

    def batch_loss(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            answers = teacher(inputs)
        logits = model(inputs)
        return loss(logits, answers, targets), logits

    return batch_loss
