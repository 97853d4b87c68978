"""The protocol of a task: what a model answers, and how answers are trained and judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from torch import Tensor

from compressbench.core.types import DataSpec, Split

Distribution = Literal["classes", "binary", ""]
Reduction = Literal["mean", "sum"]
IGNORED = -100  # target of a position that has none, the default of torch's cross-entropy


class Task(Protocol):
    """What a dataset asks of a model. Answers are one float32 tensor [N, ...]; higher values of
    class scores mean more likely. Targets are those of `Split`.

    Attributes:
        name: such as "classification".
        metrics: names that `score` takes (see `core.metrics`); the first is the default.
        running: name of the mean of `quality`, reported while training as `train/<running>`.
        distribution: what softmax or sigmoid make of an answer: "classes" (one of them is right),
            "binary" (each is right or not), or "" where answers are no scores.
        learns: whether targets can be learnt; otherwise `score` takes the answers of the float
            model for targets.
        decides: whether answers are decisions, which file and model must have in common.
    """

    @property
    def name(self) -> str: ...

    @property
    def metrics(self) -> tuple[str, ...]: ...

    @property
    def running(self) -> str: ...

    @property
    def distribution(self) -> Distribution: ...

    @property
    def decides(self) -> bool: ...

    @property
    def learns(self) -> bool: ...

    def outputs(self, spec: DataSpec) -> int:
        """The number of values that the model answers per sample or position, such as classes."""
        ...

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        """The shape of the answer to one sample."""
        ...

    def check(self, spec: DataSpec, split: Split, where: str) -> None:
        """Raise UserError for targets of a wrong type, shape or range; `where` names the split."""
        ...

    def loss(
        self,
        answers: Tensor,
        targets: Tensor,
        *,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> Tensor:
        """The training loss, a scalar: the mean or sum over samples (or labelled positions).

        Only tasks with classes know label smoothing.
        """
        ...

    def labelled(
        self, student: Tensor, teacher: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same without positions that have no target: [M, ...] each, as `loss` and
        `divergence` take them, too.
        """
        ...

    def quality(self, answers: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(the sum of a simple figure of merit, the number of its terms), scalars."""
        ...

    def divergence(self, given: Tensor, answers: Tensor, temperature: float = 1.0) -> Tensor:
        """How far `answers` are from `given`, summed over samples: at least 0, and 0 where both are
        equal. Between class scores it is the Kullback-Leibler divergence in nats, at `temperature`.
        """
        ...

    def score(self, metric: str, answers: Tensor, targets: Tensor) -> float:
        """One of `metrics` over a whole split; in the units of the metric."""
        ...

    def rows(self, answers: Tensor) -> Tensor:
        """Answers as [M, K]: one row per decision of K scores, or per sample."""
        ...

    def guess(self, metric: str, targets: Tensor, spec: DataSpec) -> float | None:
        """The metric of the best constant answer; None if there is no such bound."""
        ...

    def describe(self, spec: DataSpec) -> Mapping[str, Any]:
        """Plain JSON on the output of an exported file, for whoever runs it."""
        ...
