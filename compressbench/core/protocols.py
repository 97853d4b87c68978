"""The protocols of the methods that stages are built from: one file and one YAML each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from compressbench.core.types import Context


class Criterion(Protocol):
    """An importance score for pruning, from the weights alone.

    Scores have the shape of the layer's weight, one for each weight, higher is kept, and a channel
    has the sum over its weights; or they are [output channels], and a weight has that of its
    channel. A class attribute `comparable = False` says that scores of different layers are in
    different units: ranked together, each layer's are then divided by their mean. Another, `work`,
    says how many (training steps, forward passes) one of its `images` takes; (0, 1) without it.
    """

    def __call__(self, layers: Mapping[str, nn.Module], context: Context) -> dict[str, Tensor]:
        """Importance of the weights of `layers`, finite, of either sign; the same on all ranks."""
        ...


class ModelCriterion(Protocol):
    """An importance score that looks at the whole model, at work on training images for instance.

    It may also have `update(model, masks, context)`: new weights, by layer, zero where `masks`
    (True is kept) say so, that make up for what goes.
    """

    def of_model(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor]:
        """As `Criterion`; `layers` are some of `model` (CPU, eval mode), which is not changed."""
        ...


@runtime_checkable
class LearntCriterion(Protocol):
    """An importance score that builds up while a model is trained; every score starts at 0."""

    def step(self, score: Tensor, weight: Tensor, gradient: Tensor, rate: float) -> Tensor:
        """The scores of a layer after one more step, all in the shape of its weight.

        `weight` as it was in the forward pass, where it is masked as it was when it went;
        `gradient` of the loss in the masked weight, masked ones included; `rate`: learning rate.
        """
        ...


class Observer(Protocol):
    """Chooses the range of an activation tensor from calibration batches, or of weights.

    It may also have `row_ranges(values, bits, symmetric)`: (low, high) of each row of float32
    [R, N], all rows together, for weights with many scales.
    """

    def start(self) -> Any:
        """The empty statistic."""
        ...

    def update(self, statistic: Any, values: Tensor) -> Any:
        """The statistic after one more batch, any shape, any float dtype."""
        ...

    def range(self, statistic: Any, bits: int, symmetric: bool) -> tuple[float, float]:
        """(low, high) of the values to represent on a grid of `bits`, reduced over ranks.

        A `symmetric` grid spans [-m, m] for the larger of the two.
        """
        ...


class Sensitivity(Protocol):
    """What rounding the weights of single layers costs."""

    def __call__(
        self, model: nn.Module, candidates: Mapping[str, Mapping[int, Tensor]], context: Context
    ) -> dict[str, dict[int, float]]:
        """Layer -> bits -> cost, of each of `candidates`: layer -> bits -> the rounded weight.

        Costs are of at least 0, the same on all ranks, and add up over layers. `model` is float,
        in eval mode, on the CPU, and is not changed.
        """
        ...


class DistillationLoss(Protocol):
    """A loss between a student's and a teacher's logits."""

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Logits [B, K], logits [B, K], labels int64 [B] -> a scalar.

        Of token classification logits are [B, L, K] and labels [B, L], -100 where there is none.
        """
        ...


@runtime_checkable
class FeatureLoss(Protocol):
    """A loss between what a layer of a student and one of its teacher give, [B, ...] each."""

    @property
    def layers(self) -> Mapping[str, str] | None:
        """Layers of the student -> layers of the teacher, None for a choice of its own."""
        ...

    @property
    def weight(self) -> float: ...

    def choose(self, count: int) -> Sequence[int]:
        """Which of `count` pairs of layers to compare, where none are named.

        The pairs are the last layers of each resolution that both models have, in forward order.
        """
        ...

    def connect(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module | None:
        """A module, trained with the student, that makes features of the shape `student` (without
        the batch) ones that can be compared with `teacher`; None where they can be already.

        A module that has a method `of_teacher` makes comparable features of the teacher's, too.
        Raises UserError with both shapes where there is no way.
        """
        ...

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Features [B, ...] of both, connected -> a scalar of at least 0.

        A class attribute `sees_labels = True` asks for the labels as a third argument.
        """
        ...
