"""One class per token, and language models, for which that is the next token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from compressbench.core.errors import UserError
from compressbench.core.task import IGNORED
from compressbench.core.types import DataSpec, Split
from compressbench.tasks.classification import Classification, check_classes, class_score


@dataclass(frozen=True)
class TokenClassification(Classification):
    """Scores of K classes per token, [N, L, K]; targets int64 [N, L], -100 where there is none.

    Metrics: `token_accuracy`, and `f1`, the mean over the classes.
    """

    name: ClassVar[str] = "tokens"
    metrics: ClassVar[tuple[str, ...]] = ("token_accuracy", "f1")
    running: ClassVar[str] = "token_accuracy"

    def shape(self, spec: DataSpec) -> tuple[int, ...]:
        return (spec.input_shape[0], self.outputs(spec))

    def check(self, spec: DataSpec, split: Split, where: str) -> None:
        check_classes(split.targets, 2, spec, where)
        if tuple(split.targets.shape) != tuple(split.inputs.shape[:2]):
            raise UserError(
                f"{where}: there must be one target per token, got {list(split.targets.shape)} for "
                f"inputs {list(split.inputs.shape)}"
            )

    def score(self, metric: str, answers: Tensor, targets: Tensor) -> float:
        kept = targets != IGNORED
        name = "accuracy" if metric == "token_accuracy" else metric
        return class_score(name, answers[kept], targets[kept])

    def rows(self, answers: Tensor) -> Tensor:
        return answers.flatten(0, -2)

    def guess(self, metric: str, targets: Tensor, spec: DataSpec) -> float | None:
        labels = targets[targets != IGNORED]
        most = torch.bincount(labels, minlength=self.outputs(spec)).argmax()
        constant = F.one_hot(most.expand_as(labels), self.outputs(spec)).float()
        return class_score("accuracy" if metric == "token_accuracy" else metric, constant, labels)

    def describe(self, spec: DataSpec) -> Mapping[str, Any]:
        return {"shape": ["batch", *self.shape(spec)], "values": "the largest score of a token"}


@dataclass(frozen=True)
class LanguageModel(TokenClassification):
    """Scores of the next token, [N, L, V]; targets int64 [N, L], the ids that follow each position,
    -100 where none does. The model must not look ahead.

    Metrics: `perplexity`, exp of the mean cross-entropy; `bits_per_token`, that mean in bits;
    `token_accuracy`.
    """

    name: ClassVar[str] = "language_model"
    metrics: ClassVar[tuple[str, ...]] = ("perplexity", "bits_per_token", "token_accuracy")

    def outputs(self, spec: DataSpec) -> int:
        return spec.num_classes if spec.tokens is None else spec.tokens.vocabulary

    def check(self, spec: DataSpec, split: Split, where: str) -> None:
        if spec.tokens is None:
            raise UserError(f"{where}: a language model needs token ids as inputs")
        wrong = (split.targets != IGNORED) & (
            (split.targets < 0) | (split.targets >= spec.tokens.vocabulary)
        )
        if split.targets.shape != split.inputs.shape or bool(wrong.any()):
            raise UserError(
                f"{where}: targets must be ids in [0, {spec.tokens.vocabulary}) of the shape of "
                f"the inputs {list(split.inputs.shape)}, got {list(split.targets.shape)}"
            )

    def score(self, metric: str, answers: Tensor, targets: Tensor) -> float:
        if metric == "token_accuracy":
            return super().score(metric, answers, targets)
        kept = targets != IGNORED
        nats = F.cross_entropy(answers[kept].double(), targets[kept])
        return float(nats.exp() if metric == "perplexity" else nats / torch.tensor(2.0).log())

    def guess(self, metric: str, targets: Tensor, spec: DataSpec) -> float | None:
        """What the frequencies of the tokens alone give."""
        labels = targets[targets != IGNORED]
        shares = torch.bincount(labels, minlength=self.outputs(spec)).double() / len(labels)
        if metric == "token_accuracy":
            return float(shares.max())
        nats = -torch.special.xlogy(shares, shares).sum()
        return float(nats.exp() if metric == "perplexity" else nats / torch.tensor(2.0).log())

    def describe(self, spec: DataSpec) -> Mapping[str, Any]:
        return {"shape": ["batch", *self.shape(spec)], "values": "scores of the next token"}
