"""Unstructured pruning: sets single weights to zero and keeps them there with masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressbench.core.activation_quantizers import activations_in_float
from compressbench.core.digests import digest, named
from compressbench.core.distributed import assert_same_on_ranks
from compressbench.core.edits import activation_grid
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.layers import prunable_layers, weight_owners
from compressbench.core.protocols import Criterion, ModelCriterion
from compressbench.core.types import (
    MASKED,
    TRAINED,
    WEIGHT_QUANTIZED,
    Artifact,
    Context,
    DataSpec,
    Outcome,
    Stage,
)
from compressbench.core.validation import check_flag
from compressbench.pruning.channels.measured_widths import IMAGES
from compressbench.pruning.criteria.mean_activation import MeanActivation
from compressbench.pruning.layers import check_criterion, check_names, criterion_passes, left_out
from compressbench.pruning.weights.apply import (
    mask_,
    nonzero_weights,
    weight_scores,
    zeroed,
)
from compressbench.pruning.weights.measured_densities import (
    SHARES,
    TYPICAL_LAYERS,
    cheapest,
    curves,
)
from compressbench.pruning.weights.quantized_weights import NO_UPDATE, check_grids, check_scheme
from compressbench.pruning.weights.selection import Selection, WeightScope
from compressbench.quantization.grids.calibration import calibrate_
from compressbench.training.batchnorm import BatchNormOptions


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Options shared by the stages that zero weights; `Prune` documents them."""

    scope: WeightScope = "global"
    normalize: bool | None = None
    pattern: str | None = None
    layers: Sequence[str] | None = None
    skip: Sequence[str] = ()


@dataclass(frozen=True)
class Prune(PruneOptions, BatchNormOptions):
    """Zero the least important weights of convolutions and linear layers.

    Exactly one target must be given: `sparsity`, `threshold` or an N:M `pattern`. Of equally
    important weights those of lower index are pruned first; the most important weight of a layer
    is always kept. A criterion with an `update` method then adjusts the remaining weights.
    BatchNorm statistics follow (`BatchNormOptions`); activation quantizers are calibrated again.

    Quantized weights keep their scales. Their grids must have 8 bits, and at most half of the
    weights may be pruned, since no float finetuning can follow.

    Args:
        criterion: Importance of the weights.
        sparsity: Share in [0, 1) of weights that are zero afterwards: exactly round(sparsity * n)
            of n weights, including those that were zero before.
        threshold: Prune every weight of lower importance.
        activation_threshold: With `threshold`, also prune the weights of output channels with a
            lower mean absolute activation (`MeanActivation`).
        scope: How `sparsity` is distributed: "global" (one ranking of all layers), "layer" (the
            same share in each layer), "erk" (by the shape of the layer), "lamp" (by the squares
            of its weights; for both see `layer_densities`) or "sensitivity" (by the measured cost
            of pruning the layer, see `measured_densities`).
        normalize: In a global ranking, divide scores by their layer's mean. None does so if
            scores of the criterion are not comparable between layers.
        pattern: "N:M" keeps N of M consecutive inputs (`patterns.Inputs`). "RxC" prunes blocks of
            R outputs by C inputs, by the sum of their importance.
        layers: Names or fnmatch patterns of the layers to prune; None for all. Layers that do not
            fit the pattern are skipped, unless named exactly here, which is an error.
        skip: Names or patterns of layers that are neither pruned nor counted.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset({MASKED})
    destroys: ClassVar[frozenset[str]] = frozenset()

    criterion: Criterion | ModelCriterion
    sparsity: float | None = None
    threshold: float | None = None
    activation_threshold: float | None = None

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        check_names("skip", self.skip)
        check_names("layers", ("*",) if self.layers is None else self.layers)
        self.check_batchnorm()
        self.selection()
        if self.normalize is not None:
            check_flag("normalize", self.normalize)
            if self.sparsity is None or self.scope != "global":
                raise UserError(
                    f"normalize={self.normalize} needs sparsity and scope=global: only then are "
                    "scores of different layers compared"
                )

    def selection(self) -> Selection:
        """The target, scope and pattern of this stage."""
        return Selection(
            self.sparsity, self.threshold, self.activation_threshold, self.scope, self.pattern
        )

    def check_line(self, earlier: Sequence[Stage]) -> None:
        """Reject recipes early that `check_grids` would reject only after training."""
        for stage in earlier:
            if WEIGHT_QUANTIZED in stage.adds:
                check_scheme(stage, self.selection().share)
                if hasattr(self.criterion, "update"):
                    raise UserError(NO_UPDATE)

    def check_model(self, model: nn.Module, spec: DataSpec) -> None:
        """Reject names that match no layer and patterns that do not fit, before the recipe runs."""
        self.left(model)

    def passes(self, train_images: int) -> tuple[int, int]:
        trained, forwarded = criterion_passes(self.criterion, train_images)
        forwarded += self.batchnorm_passes(train_images)
        if self.scope == "sensitivity":
            forwarded += min(IMAGES, train_images) * len(SHARES) * TYPICAL_LAYERS
        return trained, forwarded

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        start = inputs["model"]
        model = deepcopy(start.model).cpu().eval()
        left = self.left(model)
        layers = {n: m for n, m in prunable_layers(model).items() if n not in left}
        with activations_in_float(model):
            original = deepcopy(model)
            masks = self.masks(model, layers, context)
            check_grids(start, masks, hasattr(self.criterion, "update"))
            before = nonzero_weights(layers)
            self._update_(model, layers, masks, context)
            edits = mask_(layers, masks)
            coverage = zeroed(model, before, left)
            if not any(row.touched for row in coverage):
                raise CheckFailedError(self._nothing(masks))
            self.update_batchnorm_(model, original, context)
        grid = activation_grid(start.edits)
        if grid is not None:
            calibrate_(model, grid, context)
        return Outcome(start.changed(model, edits, self.adds), coverage)

    def masks(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor]:
        """Map each layer to its mask (True is kept); layers with a tied weight share a mask."""
        owners = weight_owners(model, layers)
        owned = {name: layers[name] for name in owners.values()}
        if not owned:
            raise UserError("prune: no convolution or linear layer is left to prune")
        scores = weight_scores(self.criterion, model, owned, context)
        activity = None
        if self.activation_threshold is not None:
            activity = weight_scores(MeanActivation(), model, owned, context)
        zeros = {name: layer.get_parameter("weight").detach() == 0 for name, layer in owned.items()}
        densities = None
        if self.scope == "sensitivity":
            sizes = {name: score.numel() for name, score in scores.items()}
            densities = cheapest(curves(model, owned, scores, context), sizes, self.sparsity or 0.0)
        selection = self.selection()
        masks = selection.masks(owned, scores, zeros, activity, self._normalizes(), densities)
        assert_same_on_ranks(digest(named(masks)), "which weights were pruned")
        return {name: masks[owner] for name, owner in owners.items()}

    def _normalizes(self) -> bool:
        if self.normalize is not None:
            return self.normalize
        comparable = bool(getattr(self.criterion, "comparable", True))
        return self.sparsity is not None and self.scope == "global" and not comparable

    def _update_(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        masks: Mapping[str, Tensor],
        context: Context,
    ) -> None:
        """Let the criterion adjust the remaining weights, if it has an `update` method."""
        update = getattr(self.criterion, "update", None)
        if update is None:
            return
        owners = weight_owners(model, layers).values()
        told = replace(context, batchnorm=self.batchnorm)
        moved = update(model, {name: masks[name] for name in owners}, told)
        with torch.no_grad():
            for name, weight in moved.items():
                layers[name].get_parameter("weight").copy_(weight)

    def left(self, model: nn.Module) -> dict[str, str]:
        """Map each module with weights that is not pruned to the reason."""
        layers = prunable_layers(model)
        left = left_out(model, self.skip, self.layers)
        shape = self.selection().shape()
        for name, layer in layers.items():
            misfit = shape.misfit(layer) if shape is not None and name not in left else ""
            if misfit and name in (self.layers or ()):
                raise UserError(f"pattern={self.pattern} does not fit {name}: {misfit}")
            if misfit:
                left[name] = f"{self.pattern}: {misfit}"
        return left

    def _nothing(self, masks: Mapping[str, Tensor]) -> str:
        total = sum(mask.numel() for mask in masks.values())
        zeros = sum(int((~mask).sum()) for mask in masks.values())
        return (
            f"prune changed nothing: {self.selection().target()}, but {zeros} of {total} weights "
            "were already zero"
        )


def prune_once(
    options: PruneOptions, criterion: Criterion | ModelCriterion, sparsity: float
) -> Prune:
    """A one-shot `Prune` stage with the options of a gradual or iterative stage."""
    return Prune(
        criterion,
        sparsity,
        scope=options.scope,
        normalize=options.normalize,
        pattern=options.pattern,
        layers=options.layers,
        skip=options.skip,
    )
