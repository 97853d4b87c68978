"""Trains a model from its initial weights; a checkpoint is taken unchanged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from compressbench.core.coverage import Change, coverage
from compressbench.core.edits import unique_state
from compressbench.core.errors import UserError
from compressbench.core.layers import layers_with_weights
from compressbench.core.parametrizations import is_own, parametrization_names, plain_copy
from compressbench.core.task import Task
from compressbench.core.types import QUANTIZED, TRAINED, Artifact, Context, Coverage, Outcome
from compressbench.core.validation import check_integer, check_share
from compressbench.tasks.choice import task_of
from compressbench.training.fits.schedule import (
    BatchLoss,
    FitCallback,
    FitOptions,
    Schedule,
    schedule_of,
)


@dataclass(frozen=True)
class Train(FitOptions):
    """Train with the loss of the task; a model from a checkpoint is trained and left unchanged.

    For options not listed here see `Schedule`.

    Args:
        label_smoothing: in [0, 1) (Szegedy et al. 2016, arXiv:1512.00567).
        keep_epoch: also keep the weights at the end of this epoch (0: the initial weights), to
            which pruning can rewind.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    adds: ClassVar[frozenset[str]] = frozenset({TRAINED})
    destroys: ClassVar[frozenset[str]] = QUANTIZED
    starts_fresh: ClassVar[bool] = True

    label_smoothing: float = 0.0
    keep_epoch: int | None = None

    def __post_init__(self) -> None:
        schedule_of(self)
        if self.keep_epoch is not None:
            check_integer("keep_epoch", self.keep_epoch, 0, max(0, math.ceil(self.epochs)))
        check_share("label_smoothing", self.label_smoothing)

    def passes(self, train_images: int) -> tuple[int, int]:
        return round(self.epochs * train_images), 0

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        start = inputs["model"]
        if TRAINED in start.properties and self.keep_epoch is not None:
            raise UserError(
                f"keep_epoch={self.keep_epoch}: nothing is trained, the model is from a checkpoint"
            )
        if TRAINED in start.properties:
            return Outcome(start, taken_as_it_is(start))
        loss = labels_loss(task_of(context.data.spec), self.label_smoothing)
        if self.keep_epoch is None:
            return descend(start, loss, schedule_of(self), context)
        epoch_snapshot = EpochSnapshot(
            self.keep_epoch, snapshot(start.model) if self.keep_epoch == 0 else {}
        )
        outcome = descend(start, loss, schedule_of(self), context, epoch_snapshot)
        return replace(outcome, artifact=replace(outcome.artifact, early=epoch_snapshot.kept))


@dataclass
class EpochSnapshot:
    """Fit callback that keeps the tensors of the model at the end of `epoch`."""

    epoch: int
    kept: dict[str, Tensor]

    def before_step(self, model: nn.Module, rate: float) -> None:
        """Does nothing."""

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Does nothing."""

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        if epoch == self.epoch:
            self.kept = snapshot(model)

    def state(self) -> dict[str, Any]:
        return {"kept": self.kept}

    def resume(self, state: dict[str, Any]) -> None:
        self.kept = state["kept"]


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors, each under one name only; parametrized ones by their value."""
    state = unique_state(plain_copy(model))
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}


def labels_loss(task: Task, label_smoothing: float) -> BatchLoss:
    """The task's loss with the targets, as a loss of `fit_`. Raises UserError without targets."""
    if not task.learns:
        raise UserError(
            "the data have no labels to learn from: take a trained model (model.checkpoint=FILE), "
            "and a teacher for stages that train (recipe.stages.NAME.teacher=train with a loss)"
        )

    def loss(
        model: nn.Module, inputs: Tensor, targets: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        answers = model(inputs)
        return task.loss(answers, targets, label_smoothing=label_smoothing), answers

    return loss


def descend(
    start: Artifact,
    loss: BatchLoss,
    schedule: Schedule,
    context: Context,
    callback: FitCallback | None = None,
) -> Outcome:
    """Train a copy of `start` and return it as a trained artifact."""
    from compressbench.training.fits.fit import fit_  # Lightning takes seconds to import

    model = deepcopy(start.model)
    return trained(start, model, fit_(model, loss, schedule, context, callback=callback))


def trained(start: Artifact, model: nn.Module, history: Mapping[str, list[float]]) -> Outcome:
    """The outcome of a stage that only trained `model`, a copy of the model of `start`."""
    rows = changed_weights(start.model, model)
    return Outcome(start.changed(model, adds={TRAINED}), rows, history)


def changed_weights(before: nn.Module, after: nn.Module) -> tuple[Coverage, ...]:
    """Coverage of a fit that turned `before` into `after`: the weights whose value changed.

    A layer without any is frozen, or no gradient reached it: it has no part in the output.
    """
    was, now = plain_copy(before), plain_copy(after)
    rows: dict[str, Change] = {}
    for name, layer in layers_with_weights(now).items():
        changed = _different(was.get_submodule(name), layer)
        rows[name] = changed, _how(after.get_submodule(name), changed)
    return coverage(now, rows, {})


def _different(before: nn.Module, after: nn.Module) -> int:
    old = dict(before.named_parameters(recurse=False))
    new = {name: p for name, p in after.named_parameters(recurse=False) if p.ndim > 1}
    return sum(int((p != old[name]).sum()) for name, p in new.items())


def _how(layer: nn.Module, changed: int) -> str:
    folded = parametrization_names(layer)
    weights = [p for name, p in layer.named_parameters() if is_own(name)]
    if changed:
        return f"trained, {folded} folded" if folded else "trained"
    if not any(p.requires_grad for p in weights):
        return "frozen"
    if all(p.grad is None for p in weights):
        return "unused: the output does not depend on it"
    return "unchanged: its gradient is zero"


def taken_as_it_is(start: Artifact) -> tuple[Coverage, ...]:
    """Coverage of a model that was trained elsewhere."""
    model = plain_copy(start.model)
    source = "given as trained" if start.model_config.get("trained") else "from the checkpoint"
    return coverage(model, dict.fromkeys(layers_with_weights(model), (0, source)), {})
