"""Protocols of the methods that stages are configured with; one file and YAML per method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from compressbench.core.types import Context


class Criterion(Protocol):
    """An importance score for pruning, computed from the weights alone.

    Weights with higher scores are kept. Scores have the shape of the layer's weight, and the score
    of a channel is the sum over its weights; or they are [output channels], and each weight has the
    score of its channel. Optional class attributes: `comparable = False` if the scores of different
    layers have different units, so that they are divided by their mean before layers are ranked
    together; `work`, the (training steps, forward passes) per image of its option `images`, (0, 1)
    by default.
    """

    def __call__(self, layers: Mapping[str, nn.Module], context: Context) -> dict[str, Tensor]:
        """Layer name -> scores: finite, of either sign, the same on all ranks."""
        ...


class ModelCriterion(Protocol):
    """An importance score computed from the whole model, for example on training images.

    It may also have `update(model, masks, context)`, which returns new weights by layer that
    compensate for the pruned ones; they are zero where `masks` (True: kept) are False.
    """

    def of_model(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor]:
        """As `Criterion`; `layers` belong to `model` (CPU, eval mode), which is not changed."""
        ...


@runtime_checkable
class LearntCriterion(Protocol):
    """An importance score that is accumulated during training, starting at 0."""

    def step(self, score: Tensor, weight: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """Return the scores of a layer after another step; all tensors have the weight's shape.

        `weight` is as in the forward pass, but pruned weights have the values that they had when
        they were pruned. `gradient` is that of the loss with respect to the masked weight, also at
        pruned positions; `rate` is the learning rate.
        """
        ...


class Observer(Protocol):
    """Chooses the range of an activation tensor from calibration batches, or of weights.

    It may also have `row_ranges(values, bits, symmetric)`, which returns (low, high) of all rows of
    float32 [R, N] at once, for weights with many scales.
    """

    def start(self) -> Any:
        """Return the empty statistic."""
        ...

    def update(self, statistic: Any, values: Tensor) -> Any:
        """Return the statistic after another batch of any shape and float type."""
        ...

    def range(self, statistic: Any, bits: int, symmetric: bool) -> tuple[float, float]:
        """Return the range (low, high) to represent with `bits`, reduced over ranks.

        A `symmetric` grid spans [-m, m] with m = max(|low|, |high|).
        """
        ...


class Sensitivity(Protocol):
    """Estimates the cost of rounding the weights of single layers."""

    def __call__(
        self, model: nn.Module, candidates: Mapping[str, Mapping[int, Tensor]], context: Context
    ) -> dict[str, dict[int, float]]:
        """Layer -> bits -> cost, for all `candidates` (layer -> bits -> rounded weight).

        Costs are at least 0, the same on all ranks, and additive over layers. `model` is in float
        and eval mode on the CPU, and is not changed.
        """
        ...


class DistillationLoss(Protocol):
    """A loss between the logits of a student and a teacher."""

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Logits [B, K], logits [B, K], labels int64 [B] -> a scalar.

        For token classification [B, L, K] twice and labels [B, L], -100 where there is no label.
        With a class attribute `sees_task = True`, the `Task` is passed as fourth argument; a class
        attribute `distributions` names those that the loss can compare (see `Task`).
        """
        ...


@runtime_checkable
class FeatureLoss(Protocol):
    """A loss between the outputs of a student layer and a teacher layer, [B, ...] each."""

    @property
    def layers(self) -> Mapping[str, str] | None:
        """Student layer -> teacher layer; None to use `choose`."""
        ...

    @property
    def weight(self) -> float: ...

    def choose(self, count: int) -> Sequence[int]:
        """Positions of the pairs to compare, of `count`, if `layers` is None.

        There is one pair for each resolution that both models have, made of the last layers with
        that resolution, in forward order.
        """
        ...

    def connect(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module | None:
        """A module, trained with the student, that maps student features to ones comparable with
        the teacher's; None if they are comparable already.

        `student` and `teacher` are shapes without the batch axis. If the module has a method
        `of_teacher`, that is applied to the teacher's features. Raises UserError with both shapes
        if they cannot be compared.
        """
        ...

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Connected features [B, ...] of student and teacher -> a scalar of at least 0.

        With a class attribute `sees_labels = True`, the labels are passed as third argument.
        """
        ...
