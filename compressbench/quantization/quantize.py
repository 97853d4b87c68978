"""Post-training quantization of weights, and optionally of activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from torch import nn

from compressbench.core import activation_quantizers
from compressbench.core.activation_sites import find_sites
from compressbench.core.errors import UserError
from compressbench.core.grid import Grid, WeightQuantizer
from compressbench.core.protocols import Observer
from compressbench.core.types import (
    QUANTIZED,
    TRAINED,
    WEIGHT_QUANTIZED,
    Artifact,
    Context,
    DataSpec,
    Edit,
    Outcome,
)
from compressbench.core.validation import check_flag, check_integer, check_share
from compressbench.quantization.budgets import check_budget
from compressbench.quantization.float_where_slower import FILES, fastest, with_gains
from compressbench.quantization.grids import site_losses
from compressbench.quantization.grids.calibration import (
    is_observer,
    left_in_float,
    quantize_activations_,
)
from compressbench.quantization.grids.scheme import GridOptions, Scheme, check_found, scheme_of
from compressbench.quantization.grids.weights import coverage_of_grids, quantize_weights_
from compressbench.quantization.mixed_precision import TABLE, Allocation
from compressbench.quantization.observers.dynamic import Dynamic
from compressbench.quantization.preparation.bias_correction import correct_bias_
from compressbench.quantization.preparation.folding import check_scales_survive
from compressbench.quantization.preparation.prepare import check_preparation, prepare_
from compressbench.training.batchnorm import BatchNormOptions


@dataclass(frozen=True)
class Quantize(GridOptions, BatchNormOptions):
    """Quantize the weights of convolutions, linear layers and embeddings, and the activations.

    The options apply in this order: `fold_batchnorm`, `equalize`, `weight`, `correct_bias`,
    BatchNorm statistics, `activation`. Zero weights stay zero. The coverage lists layers that are
    not quantized, with the reason. `granularity`, `group_size`, `symmetric`, `narrow` and
    `power_of_two` are those of `Grid`; `rules` and `widths` change them for some layers
    (`Scheme`); `activation_bits`, `activation_symmetric` and `float_activations` are those of
    `GridOptions`, `batchnorm` and `batchnorm_images` those of `BatchNormOptions`.

    Args:
        weight: Method that rounds the weights.
        activation: Observer of activation ranges. None keeps activations in float; `Dynamic`
            computes the ranges at run time.
        bits: Width of the weights in bits, 2 to 8; ignored with `allocation`.
        reduce_range: Use 7 bits instead of 8, so that sums of two products fit into the 16-bit
            accumulators of x86 CPUs without VNNI.
        fold_batchnorm: Fold BatchNorm into the preceding layers first.
        equalize: Equalize the weight ranges of consecutive layers; needs `fold_batchnorm`.
        correct_bias: Compensate the mean error of each layer's outputs in its bias.
        calibration_images: Training images for `correct_bias` and the observer.
        batch_size: Images per batch of calibration.
        allocation: Chooses the bits of all layers for which neither rules nor widths set them.
        float_where_slower: Leave activations in float where the file is then faster on this
            machine, as measured in interleaved pairs; needs static ranges.
        max_growth: With that, share by which the file may be larger than without.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    destroys: ClassVar[frozenset[str]] = QUANTIZED

    weight: WeightQuantizer
    activation: Observer | Dynamic | None = None
    bits: int = 8
    reduce_range: bool = False
    fold_batchnorm: bool = False
    equalize: bool = False
    correct_bias: bool = False
    calibration_images: int = 512
    batch_size: int = 64
    allocation: Allocation | None = None
    float_where_slower: bool = False
    max_growth: float = 0.1

    def __post_init__(self) -> None:
        self.scheme()
        check_preparation(self.fold_batchnorm, self.equalize, self.correct_bias)
        check_flag("reduce_range", self.reduce_range)
        self.check_batchnorm()
        check_integer("calibration_images", self.calibration_images, 1)
        check_integer("batch_size", self.batch_size, 1)
        if not callable(self.weight):
            raise UserError(f"weight must be a weight quantizer, got {self.weight!r}")
        if self.allocation is not None and not isinstance(self.allocation, Allocation):
            raise UserError(f"allocation must be an Allocation or null, got {self.allocation!r}")
        if self.allocation is not None and self.reduce_range:
            raise UserError("reduce_range=true does not work with allocation: use 7 in its widths")
        check_flag("float_where_slower", self.float_where_slower)
        check_share("max_growth", self.max_growth)
        if isinstance(self.activation, Dynamic):
            self._check_dynamic()
        elif self.activation is not None and not is_observer(self.activation):
            raise UserError(f"activation must be an observer or null, got {self.activation!r}")
        if self.float_activations and not self._is_static():
            raise UserError("float_activations needs activations with calibrated ranges")
        if self.float_where_slower and not self._is_static():
            raise UserError(
                "float_where_slower=true needs static ranges of activations, such as "
                "activation=minmax"
            )

    def _is_static(self) -> bool:
        return self.activation is not None and not isinstance(self.activation, Dynamic)

    def _check_dynamic(self) -> None:
        if self.activation_bits != 8:
            raise UserError(
                f"activation_bits must be 8 for activation=dynamic, got {self.activation_bits}"
            )
        if self.activation_symmetric:
            raise UserError("activation_symmetric must be false for activation=dynamic, got true")

    @property
    def adds(self) -> frozenset[str]:
        return frozenset({WEIGHT_QUANTIZED}) if self.activation is None else QUANTIZED

    @property
    def weighs_files(self) -> bool:
        return self.allocation is not None

    @property
    def times_files(self) -> bool:
        return self.float_where_slower

    def scheme(self) -> Scheme:
        """The grids of the layers."""
        return scheme_of(self, self.bits)

    def _grids(self, model: nn.Module, spec: DataSpec) -> tuple[dict[str, Grid], dict[str, str]]:
        grids, reasons = self.scheme().grids(model, spec)
        if self.reduce_range:
            grids = {n: replace(g, bits=7) if g.bits == 8 else g for n, g in grids.items()}
        return grids, reasons

    def check_model(self, model: nn.Module, spec: DataSpec) -> None:
        """Reject rules without a layer and group sizes that do not fit, before the recipe runs."""
        grids, reasons = self._grids(model, spec)
        check_found("quantize", grids, reasons)
        if not self.fold_batchnorm:
            check_scales_survive(model, grids, spec.blank(2))
        if self.float_activations:
            left_in_float(find_sites(model, spec.blank(2)), self.float_activations)
        if self.allocation is not None:
            self._free(model, spec)

    def check_limits(self, model: nn.Module, spec: DataSpec) -> None:
        """Reject a budget of bytes that is below those of the weights."""
        if self.allocation is not None:
            grids, _ = self._grids(model, spec)
            check_budget(self.allocation, model, grids, self._free(model, spec))

    def passes(self, train_images: int) -> tuple[int, int]:
        images, static = min(self.calibration_images, train_images), self._is_static()
        calibration = ((1 if static else 0) + (2 if self.correct_bias else 0)) * images
        compared = min(images, site_losses.IMAGES) if static else 0
        return 0, self.batchnorm_passes(train_images) + calibration + compared

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        start = inputs["model"]
        model = deepcopy(start.model).cpu().eval()
        grids, reasons = self._grids(model, context.data.spec)
        check_found("quantize", grids, reasons)
        edits, warnings = prepare_(
            model, grids, context.data.spec.blank(2), self.fold_batchnorm, self.equalize
        )
        start = replace(start, edits=(*start.edits, *edits))
        finish = partial(self._finish, start, model, context)
        tables: dict[str, Sequence[Mapping[str, Any]]] = {}
        if self.allocation is None:
            artifact = finish(grids, self.weight)
        else:
            free = self._free(model, context.data.spec)
            allocated = self.allocation(model, grids, free, self.weight, finish, context)
            artifact, grids = allocated.artifact, dict(allocated.grids)
            tables[TABLE] = allocated.rows
        rows = coverage_of_grids(model, grids, reasons)
        if self.float_where_slower:
            chosen = fastest(artifact, context, self.max_growth)
            artifact, rows = chosen.artifact, with_gains(rows, chosen)
            tables[FILES] = chosen.rows
        losses = site_losses.of_artifact(artifact, context)
        tables |= losses.tables
        return Outcome(artifact, rows, warnings=(*warnings, *losses.warnings), tables=tables)

    def _free(self, model: nn.Module, spec: DataSpec) -> list[str]:
        """The layers whose bits neither rules nor widths set."""
        scheme = self.scheme()
        eight, four = (
            replace(scheme, grid=replace(scheme.grid, bits=bits)).grids(model, spec)[0]
            for bits in (8, 4)
        )
        free = [name for name, grid in eight.items() if grid.bits != four[name].bits]
        if not free:
            raise UserError("allocation has no layer to choose for: rules and widths set all bits")
        return free

    def _finish(
        self,
        start: Artifact,
        prepared: nn.Module,
        context: Context,
        grids: Mapping[str, Grid],
        method: WeightQuantizer,
    ) -> Artifact:
        """Quantize a copy of the float model `prepared`, which is not modified."""
        model = deepcopy(prepared)
        told = replace(context, batchnorm=self.batchnorm)
        edits: list[Edit] = [quantize_weights_(model, grids, method, told)]
        if self.correct_bias:
            edit = correct_bias_(
                model, prepared, list(grids), told, self.calibration_images, self.batch_size
            )
            edits += [] if edit is None else [edit]
        self.update_batchnorm_(model, prepared, context)
        if self.activation is not None:
            edits.append(self._quantize_activations_(model, grids, context))
        return start.changed(model, edits, self.adds)

    def _quantize_activations_(
        self, model: nn.Module, grids: Mapping[str, Grid], context: Context
    ) -> Edit:
        assert self.activation is not None
        if isinstance(self.activation, Dynamic):
            dynamic = self.activation.edit(model, context.data.spec.blank(2), grids)
            activation_quantizers.attach_(model, dynamic)
            return dynamic
        return quantize_activations_(
            model,
            self.activation,
            context,
            bits=self.activation_bits,
            symmetric=self.activation_symmetric,
            power_of_two=self.power_of_two,
            images=self.calibration_images,
            batch_size=self.batch_size,
            in_float=self.float_activations,
        )
