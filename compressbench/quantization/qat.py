"""Quantization-aware training: trains a model with rounded weights and activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import nn

from compressbench.core.activation_sites import find_sites, site_name
from compressbench.core.errors import UserError
from compressbench.core.grid import Grid
from compressbench.core.protocols import Observer
from compressbench.core.types import (
    QUANTIZED,
    TRAINED,
    WEIGHT_QUANTIZED,
    Artifact,
    Context,
    Coverage,
    DataSpec,
    Edit,
    Outcome,
)
from compressbench.core.validation import check_flag, check_integer
from compressbench.quantization.grids import site_losses
from compressbench.quantization.grids.calibration import (
    is_observer,
    left_in_float,
    quantize_activations_,
)
from compressbench.quantization.grids.scheme import GridOptions, Scheme, check_found, scheme_of
from compressbench.quantization.grids.site_values import site_quantizers
from compressbench.quantization.grids.weights import coverage_of_grids
from compressbench.quantization.preparation.folding import check_scales_survive
from compressbench.quantization.preparation.prepare import prepare_
from compressbench.quantization.trained.model import FakeQuantizedModel
from compressbench.quantization.trained.protocols import ActivationTraining, WeightTraining
from compressbench.quantization.trained.training_calls import check_training_calls
from compressbench.training.fits.schedule import schedule_of
from compressbench.training.teaching import objective
from compressbench.training.train import changed_weights


@dataclass(frozen=True)
class QuantizeAware(objective.TaughtFitOptions, GridOptions):
    """Train a float model with rounded weights and activations; the result is a quantized model.

    Masked weights stay zero. `granularity`, `group_size`, `symmetric`, `narrow` and `power_of_two`
    are those of `Grid`; `rules` and `widths` those of `Scheme`; `epochs`, `batch_size`,
    `optimizer` and `warmup` those of `Schedule`. With a distillation `loss` the recipe must name
    a `teacher`; otherwise the loss is cross-entropy with `label_smoothing`.

    Args:
        weight: Rounds the weights in every training step.
        activation: Rounds the activations in every training step; None keeps them in float.
        ranges: Observer of the initial activation ranges.
        bits: Width of the weights in bits, 2 to 8.
        fold_batchnorm: Fold BatchNorm into the preceding layers before training; otherwise it is
            trained as part of the model, and the unfolded weights are rounded.
        calibration_images: Training images that the observer uses.
        calibration_batch_size: Images per batch of the observer.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    destroys: ClassVar[frozenset[str]] = QUANTIZED

    weight: WeightTraining
    activation: ActivationTraining | None
    ranges: Observer
    bits: int = 4
    fold_batchnorm: bool = False
    calibration_images: int = 512
    calibration_batch_size: int = 64

    def __post_init__(self) -> None:
        objective.check_fit(self)
        self.scheme()
        check_flag("fold_batchnorm", self.fold_batchnorm)
        check_integer("calibration_images", self.calibration_images, 1)
        check_integer("calibration_batch_size", self.calibration_batch_size, 1)
        for name in ("weight", "activation"):
            method = getattr(self, name)
            optional = name == "activation" and method is None
            if not optional and not callable(getattr(method, name, None)):
                raise UserError(f"{name} must be a trained {name} quantizer, got {method!r}")
        if not is_observer(self.ranges):
            raise UserError(f"ranges must be an observer, got {self.ranges!r}")
        if self.float_activations and self.activation is None:
            raise UserError("float_activations needs activations with calibrated ranges")

    @property
    def adds(self) -> frozenset[str]:
        return frozenset({WEIGHT_QUANTIZED}) if self.activation is None else QUANTIZED

    def scheme(self) -> Scheme:
        """The grids of the layers."""
        return scheme_of(self, self.bits)

    def check_model(self, model: nn.Module, spec: DataSpec) -> None:
        """Reject rules without a layer, group sizes that do not fit, and models that compute
        otherwise in training, before the recipe runs.
        """
        grids, reasons = self.scheme().grids(model, spec)
        check_found("qat", grids, reasons)
        if not self.fold_batchnorm:
            check_scales_survive(model, grids, spec.blank(2))
        if self.activation is not None:
            left_in_float(find_sites(model, spec.blank(2)), self.float_activations)
            check_training_calls(model, spec)

    check_teachers = objective.check_teachers

    def passes(self, train_images: int) -> tuple[int, int]:
        trained = round(self.epochs * train_images)
        if self.activation is None:
            return trained, 0
        calibration = min(self.calibration_images, train_images)
        return trained, calibration + min(calibration, site_losses.IMAGES)

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        from compressbench.training.fits.fit import fit_  # Lightning takes seconds to import

        start = inputs["model"]
        model = deepcopy(start.model).cpu().eval()
        grids, reasons = self.scheme().grids(model, context.data.spec)
        check_found("qat", grids, reasons)
        prepared, warnings = prepare_(
            model, grids, context.data.spec.blank(2), self.fold_batchnorm, equalize=False
        )
        calibrated = [] if self.activation is None else [self._calibrate_(model, context)]
        trained = FakeQuantizedModel(model, grids, self.weight, self.activation, self.power_of_two)
        warnings += _fixed(trained.fixed_sites(), calibrated)
        schedule = schedule_of(self)
        history, notes = objective.learn_(
            model, inputs, self.loss, self.label_smoothing, schedule, context,
            lambda loss: fit_(trained, loss, schedule, context, trained.groups()),
        )  # fmt: skip
        edits = [*prepared, trained.settle_(), *calibrated]
        artifact = start.changed(model, edits, self.adds)
        rows = _with_trained(coverage_of_grids(model, grids, reasons), start.model, model, grids)
        losses = site_losses.of_artifact(artifact, context, trained=True)
        warnings += losses.warnings
        return Outcome(artifact, rows, history, warnings, losses.tables, notes)

    def _calibrate_(self, model: nn.Module, context: Context) -> Edit:
        edit = quantize_activations_(
            model,
            self.ranges,
            context,
            bits=self.activation_bits,
            symmetric=self.activation_symmetric,
            power_of_two=self.power_of_two,
            images=self.calibration_images,
            batch_size=self.calibration_batch_size,
            in_float=self.float_activations,
        )
        site_quantizers(model).find_places_(model, context.data.spec.blank(2))
        return edit


def _with_trained(
    rows: Sequence[Coverage], before: nn.Module, after: nn.Module, grids: Mapping[str, Grid]
) -> tuple[Coverage, ...]:
    """The rows, with the weights of layers in float that training has changed."""
    changed = {row.layer: row.touched for row in changed_weights(before, after)}
    return tuple(
        replace(row, touched=changed[row.layer], detail=f"{row.detail}; trained")
        if row.layer not in grids and changed[row.layer]
        else row
        for row in rows
    )


def _fixed(numbers: Sequence[int], edits: Sequence[Edit]) -> tuple[str, ...]:
    """A warning about activation sites that the method does not train."""
    if not numbers:
        return ()
    names = [site_name(edit["sites"][n]) for edit in edits for n in numbers]
    return (f"{len(names)} activation ranges stay as calibrated: {', '.join(names)}",)
