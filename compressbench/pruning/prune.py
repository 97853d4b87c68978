"""Unstructured pruning: single weights become zero and stay so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
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
from compressbench.core.validation import check_flag, check_integer
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
from compressbench.training.batchnorm import reestimate_batchnorm_


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Which weights may be zeroed together: fields alone, which `Prune` explains."""

    scope: WeightScope = "global"
    normalize: bool | None = None
    pattern: str | None = None
    layers: Sequence[str] | None = None
    skip: Sequence[str] = ()


@dataclass(frozen=True)
class Prune(PruneOptions):
    """Zero the least important weights of convolutions and linear layers.

    One target. `sparsity`: exactly round(sparsity * n) of the n weights are zero afterwards, zeros
    that were there before included, spread by the `scope`: "global" (one ranking of all layers),
    "layer" (the same share of each), "erk" or "lamp" (a share for each layer by its shape, or by
    the squares of its weights: `budgets`), "sensitivity" (by what its zeros are measured to cost:
    `measured_shares`). `threshold`: every weight of less importance goes, and with
    `activation_threshold` also those of output channels whose mean absolute activation
    (`MeanActivation`) is less. `pattern` "N:M": N of M inputs stay (`patterns.Inputs`).

    Of equal weights those of lower index go first; the most important weight of a layer always
    stays. `pattern` "RxC" takes weights in blocks, by the sum of their importance, to a sparsity
    (of the blocks) or a threshold. In a global ranking `normalize` divides scores by their layer's
    mean; None does where the criterion's are not comparable between layers.

    Only the layers that match `layers` (names or fnmatch patterns; None: all) and not `skip` are
    pruned and count; so do those that a pattern fits: others are left, unless `layers` has their
    very name, which is refused. A criterion with an `update` then moves the weights that stay.
    BatchNorm statistics are measured on `batchnorm_images` training images, and activations
    calibrated again.

    Weights on integer grids keep their scales; the grids must have 8 bits, and at most half of
    the weights may go, since no float finetune can follow.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset({MASKED})
    destroys: ClassVar[frozenset[str]] = frozenset()

    criterion: Criterion | ModelCriterion
    sparsity: float | None = None
    threshold: float | None = None
    activation_threshold: float | None = None
    batchnorm_images: int = 1024

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        check_names("skip", self.skip)
        check_names("layers", self.layers or ())
        check_integer("batchnorm_images", self.batchnorm_images, 2)
        self.selection()
        if self.normalize is not None:
            check_flag("normalize", self.normalize)
            if self.sparsity is None or self.scope != "global":
                raise UserError(
                    f"normalize={self.normalize} is for a sparsity with scope=global: otherwise "
                    "scores of different layers are not compared"
                )

    def selection(self) -> Selection:
        return Selection(
            self.sparsity, self.threshold, self.activation_threshold, self.scope, self.pattern
        )

    def check_line(self, earlier: Sequence[Stage]) -> None:
        """Refuse before anything runs what `check_grids` would refuse after a training."""
        for stage in earlier:
            if WEIGHT_QUANTIZED in stage.adds:
                check_scheme(stage, self.selection().share)
                if hasattr(self.criterion, "update"):
                    raise UserError(NO_UPDATE)

    def check_model(self, model: nn.Module, spec: DataSpec) -> None:
        """Refuse before anything runs a name without a layer, and a pattern that does not fit."""
        self.left(model)

    def passes(self, train_images: int) -> tuple[int, int]:
        trained, forwarded = criterion_passes(self.criterion, train_images)
        forwarded += min(self.batchnorm_images, train_images)
        if self.scope == "sensitivity":
            forwarded += min(IMAGES, train_images) * len(SHARES) * TYPICAL_LAYERS
        return trained, forwarded

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        start = inputs["model"]
        model = deepcopy(start.model).cpu().eval()
        left = self.left(model)
        layers = {n: m for n, m in prunable_layers(model).items() if n not in left}
        with activations_in_float(model):
            masks = self.masks(model, layers, context)
            check_grids(start, masks, hasattr(self.criterion, "update"))
            before = nonzero_weights(layers)
            self._update_(model, layers, masks, context)
            edits = mask_(layers, masks)
            coverage = zeroed(model, before, left)
            if not any(row.touched for row in coverage):
                raise CheckFailedError(self._nothing(masks))
            reestimate_batchnorm_(model, context, self.batchnorm_images)
        grid = activation_grid(start.edits)
        if grid is not None:
            calibrate_(model, grid, context)
        return Outcome(start.changed(model, edits, self.adds), coverage)

    def masks(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor]:
        """Layer -> what stays of its weight; layers with one tied weight get the same mask."""
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
        alike = bool(getattr(self.criterion, "comparable", True))
        return self.sparsity is not None and self.scope == "global" and not alike

    def _update_(
        self,
        model: nn.Module,
        layers: Mapping[str, nn.Module],
        masks: Mapping[str, Tensor],
        context: Context,
    ) -> None:
        """Let the criterion move the weights that stay, if it does that."""
        update = getattr(self.criterion, "update", None)
        if update is None:
            return
        owners = weight_owners(model, layers).values()
        moved = update(model, {name: masks[name] for name in owners}, context)
        with torch.no_grad():
            for name, weight in moved.items():
                layers[name].get_parameter("weight").copy_(weight)

    def left(self, model: nn.Module) -> dict[str, str]:
        """Name -> reason, of the modules with weights that are not pruned."""
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
            f"prune touched nothing: {self.selection().target()}, and {zeros} of {total} weights "
            "were zero before"
        )


def prune_once(
    options: PruneOptions, criterion: Criterion | ModelCriterion, sparsity: float
) -> Prune:
    """The stage that prunes to `sparsity` in one go, with the options of one that does not."""
    return Prune(
        criterion,
        sparsity,
        scope=options.scope,
        normalize=options.normalize,
        pattern=options.pattern,
        layers=options.layers,
        skip=options.skip,
    )
