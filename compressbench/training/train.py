"""Trains a model from its initial weights; a checkpoint is taken unchanged."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.coverage import coverage
from compressbench.core.edits import masked_layers, unique_state
from compressbench.core.errors import UserError
from compressbench.core.layers import layers_with_weights, weights
from compressbench.core.types import QUANTIZED, TRAINED, Artifact, Context, Coverage, Outcome
from compressbench.core.validation import check_integer, check_share
from compressbench.training.fits.schedule import (
    BatchLoss,
    FitCallback,
    FitOptions,
    Schedule,
    schedule_of,
)


@dataclass(frozen=True)
class Train(FitOptions):
    """Train with cross-entropy; a model from a checkpoint is already trained and left unchanged.

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
            return Outcome(start, touched(start.model, "taken from the checkpoint"))
        loss = cross_entropy(self.label_smoothing)
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
    """Copies of all tensors, each under one name only."""
    return {name: tensor.detach().cpu().clone() for name, tensor in unique_state(model).items()}


def cross_entropy(label_smoothing: float) -> BatchLoss:
    """Cross-entropy with the labels, as a loss of `fit_`."""

    def loss(
        model: nn.Module, inputs: Tensor, targets: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = model(inputs)
        value = F.cross_entropy(
            logits.flatten(0, -2), targets.flatten(), label_smoothing=label_smoothing
        )
        return value, logits

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
    return Outcome(start.changed(model, adds={TRAINED}), touched(model, "trained"), history)


def touched(model: nn.Module, detail: str) -> tuple[Coverage, ...]:
    """Coverage of a stage that changes all weights that are not masked."""
    moved = {name: weights(layer) for name, layer in layers_with_weights(model).items()}
    for name, layer in masked_layers(model).items():
        moved[name] -= int((~layer.get_buffer("weight_mask")).sum())
    return coverage(model, {name: (count, detail) for name, count in moved.items()}, {})
