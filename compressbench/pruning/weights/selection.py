"""Selects weights: computes masks from a target, a scope and a pattern."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.validation import check_positive, check_share
from compressbench.pruning.criteria.scores import over_mean
from compressbench.pruning.weights import masking
from compressbench.pruning.weights.layer_densities import erk, lamp, whole
from compressbench.pruning.weights.patterns import Blocks, Inputs, parse

WeightScope = Literal["global", "layer", "erk", "lamp", "sensitivity"]
SCOPES = ("global", "layer", "erk", "lamp", "sensitivity")


@dataclass(frozen=True)
class Selection:
    """Target, scope and pattern of unstructured pruning; `Prune` documents the options."""

    sparsity: float | None
    threshold: float | None = None
    activation_threshold: float | None = None
    scope: WeightScope = "global"
    pattern: str | None = None

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise UserError(f"scope must be {', '.join(SCOPES)}, got {self.scope!r}")
        if self.sparsity is not None:
            check_share("sparsity", self.sparsity)
        if self.threshold is not None:
            check_positive("threshold", self.threshold)
        if self.activation_threshold is not None:
            check_positive("activation_threshold", self.activation_threshold)
        self._check_target()

    def _check_target(self) -> None:
        given = f"got sparsity={self.sparsity!r} and threshold={self.threshold!r}"
        if isinstance(self.shape(), Inputs):
            if self.sparsity is not None or self.threshold is not None:
                raise UserError(
                    f"pattern={self.pattern} is a target of its own: sparsity and threshold must "
                    f"be null, {given}"
                )
            if self.scope not in ("global", "layer"):
                raise UserError(
                    f"scope={self.scope} does not work with pattern={self.pattern}: set global"
                )
        elif (self.sparsity is None) == (self.threshold is None):
            raise UserError(f"exactly one of sparsity and threshold must be set, {given}")
        if self.activation_threshold is not None and self.threshold is None:
            raise UserError(
                f"activation_threshold={self.activation_threshold} needs threshold: set both"
            )
        if self.activation_threshold is not None and self.pattern is not None:
            raise UserError(f"activation_threshold does not work with pattern={self.pattern}")
        if self.scope not in ("global", "layer") and self.threshold is not None:
            raise UserError(f"scope={self.scope} needs sparsity, got threshold={self.threshold}")

    def shape(self) -> Inputs | Blocks | None:
        """The parsed pattern."""
        return None if self.pattern is None else parse(self.pattern)

    @property
    def share(self) -> float | None:
        """The sparsity after pruning, or None if it is not known in advance."""
        shape = self.shape()
        return shape.sparsity if isinstance(shape, Inputs) else self.sparsity

    def target(self) -> str:
        """The target option with its value, as text."""
        named = ("sparsity", "threshold", "pattern")
        return next(f"{n}={getattr(self, n)}" for n in named if getattr(self, n) is not None)

    def masks(
        self,
        layers: Mapping[str, nn.Module],
        scores: Mapping[str, Tensor],
        zeros: Mapping[str, Tensor],
        activity: Mapping[str, Tensor] | None = None,
        normalize: bool = False,
        densities: Mapping[str, float] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the mask (True is kept) of each layer.

        Args:
            layers: The layers to prune, by name.
            scores: Importance, in the shape of the weights, as `zeros` and `activity`.
            zeros: True for weights that are zero already.
            activity: Mean absolute outputs, for `activation_threshold`.
            normalize: Divide the scores of each layer by their mean.
            densities: Share of weights that each layer keeps, for scope "sensitivity".
        """
        shape = self.shape()
        if isinstance(shape, Inputs):
            return {n: shape.masks(layers[n], scores[n], zeros[n]) for n in layers}
        if normalize:
            scores = {n: over_mean(score) for n, score in scores.items()}
        if activity is not None:
            idle = {
                n: values < (self.activation_threshold or 0.0) for n, values in activity.items()
            }
            scores = {n: score.masked_fill(idle[n], -1.0) for n, score in scores.items()}
        if shape is None:
            return self._chosen(layers, scores, zeros, densities)
        blocks = self._chosen(
            layers,
            {n: shape.sums(layers[n], score) for n, score in scores.items()},
            {n: shape.sums(layers[n], ~zero) == 0 for n, zero in zeros.items()},
            densities,
        )
        return {n: shape.spread(layers[n], mask) & ~zeros[n] for n, mask in blocks.items()}

    def _chosen(
        self,
        layers: Mapping[str, nn.Module],
        scores: Mapping[str, Tensor],
        zeros: Mapping[str, Tensor],
        densities: Mapping[str, float] | None,
    ) -> dict[str, Tensor]:
        """Masks of single weights, or of blocks if `scores` are those of blocks."""
        if self.sparsity is None:
            return masking.by_threshold(scores, zeros, self.threshold or 0.0)
        if self.scope in ("global", "layer"):
            return masking.by_share(scores, zeros, self.sparsity, self.scope == "global")
        weights = {n: layers[n].get_parameter("weight").detach() for n in scores}
        if self.scope == "erk":
            densities = erk({n: tuple(w.shape) for n, w in weights.items()}, self.sparsity)
        if densities is not None:
            sizes = {n: score.numel() for n, score in scores.items()}
            return masking.by_count(scores, zeros, whole(densities, sizes, self.sparsity))
        squares = {n: self._squares(layers[n], weight) for n, weight in weights.items()}
        return masking.by_count(scores, zeros, lamp(squares, zeros, self.sparsity))

    def _squares(self, layer: nn.Module, weight: Tensor) -> Tensor:
        shape = self.shape()
        squares = weight.float().square().to(torch.float64)
        return shape.sums(layer, squares) if isinstance(shape, Blocks) else squares
