"""Quantization-aware training: fit a model while its weights and activations are rounded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import nn

from compressbench.core.errors import UserError
from compressbench.core.grid import Granularity, Grid
from compressbench.core.protocols import Observer
from compressbench.core.types import (
    ACTIVATION_QUANTIZED,
    TRAINED,
    WEIGHT_QUANTIZED,
    Artifact,
    Context,
    DataSpec,
    Edit,
    Outcome,
)
from compressbench.core.validation import check_flag, check_integer
from compressbench.quantization.grids.calibration import is_observer, quantize_activations_
from compressbench.quantization.grids.scheme import Scheme
from compressbench.quantization.grids.weights import coverage_of_grids
from compressbench.quantization.preparation.folding import check_scales_survive
from compressbench.quantization.preparation.prepare import prepare_
from compressbench.quantization.trained.model import FakeQuantizedModel
from compressbench.quantization.trained.protocols import ActivationTraining, WeightTraining
from compressbench.training.fits.schedule import Optimizer, Schedule
from compressbench.training.teaching import objective


@dataclass(frozen=True)
class QuantizeAware:
    """Train a float model on its grids; what it hands back is a quantized one, as of `Quantize`.

    In every step the weights, unfolded, are rounded by the method `weight` and the activations by
    the method `activation` (None leaves them in float), from ranges that the observer `ranges`
    finds on `calibration_images` training images. BatchNorm learns along, or is part of the layers
    before it from the beginning with `fold_batchnorm`. `bits`, `granularity`,
    `group_size`, `symmetric`, `narrow` and `power_of_two` are those of `Grid`; `rules` and `widths`
    those of `Scheme`; `epochs`, `batch_size`, `optimizer` and `warmup` those of `Schedule`. With a
    distillation `loss` the recipe names the `teacher`; without, it is cross-entropy with
    `label_smoothing`. Masked weights stay zero.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    destroys: ClassVar[frozenset[str]] = frozenset({WEIGHT_QUANTIZED, ACTIVATION_QUANTIZED})

    weight: WeightTraining
    activation: ActivationTraining | None
    ranges: Observer
    epochs: float
    batch_size: int
    optimizer: Optimizer
    warmup: float = 0.0
    label_smoothing: float = 0.0
    loss: Any = None
    bits: int = 4
    granularity: Granularity = "channel"
    group_size: int | None = None
    symmetric: bool = True
    narrow: bool = True
    power_of_two: bool = False
    fold_batchnorm: bool = False
    rules: Sequence[Mapping[str, Any]] | None = None
    widths: Mapping[str, Any] = field(default_factory=dict)
    activation_bits: int = 8
    activation_symmetric: bool = False
    calibration_images: int = 512
    calibration_batch_size: int = 64

    def __post_init__(self) -> None:
        self.schedule()
        self.scheme()
        objective.check_choice(self.loss, self.label_smoothing)
        check_integer("activation_bits", self.activation_bits, 4, 8)
        check_flag("activation_symmetric", self.activation_symmetric)
        check_flag("fold_batchnorm", self.fold_batchnorm)
        check_integer("calibration_images", self.calibration_images, 1)
        check_integer("calibration_batch_size", self.calibration_batch_size, 1)
        for name in ("weight", "activation"):
            method = getattr(self, name)
            optional = name == "activation" and method is None
            if not optional and not callable(getattr(method, name, None)):
                raise UserError(f"{name} must be a trained quantizer of {name}s, got {method!r}")
        if not is_observer(self.ranges):
            raise UserError(f"ranges must be an observer, got {self.ranges!r}")

    @property
    def adds(self) -> frozenset[str]:
        extra = () if self.activation is None else (ACTIVATION_QUANTIZED,)
        return frozenset({WEIGHT_QUANTIZED, *extra})

    def schedule(self) -> Schedule:
        return Schedule(self.epochs, self.batch_size, self.optimizer, self.warmup)

    def scheme(self) -> Scheme:
        grid = Grid(
            self.bits, self.granularity, self.group_size, self.symmetric, self.narrow,
            self.power_of_two,
        )  # fmt: skip
        return Scheme(grid, self.rules, self.widths)

    def check_model(self, model: nn.Module, spec: DataSpec) -> None:
        """Refuse before anything runs a rule without a layer, a group size that does not fit."""
        grids, _ = self.scheme().grids(model, spec)
        if not self.fold_batchnorm:
            check_scales_survive(model, grids, spec.blank(2))

    def check_teachers(
        self, model: nn.Module, teachers: Sequence[nn.Module], spec: DataSpec
    ) -> None:
        """Refuse before anything runs features that cannot be compared."""
        objective.check_teachers(self.loss, model, teachers, spec)

    def passes(self, train_images: int) -> tuple[int, int]:
        trained = round(self.epochs * train_images)
        calibration = 0 if self.activation is None else min(self.calibration_images, train_images)
        return trained, calibration

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        from compressbench.training.fits.fit import fit_  # Lightning takes seconds to import

        start = inputs["model"]
        model = deepcopy(start.model).cpu().eval()
        grids, reasons = self.scheme().grids(model, context.data.spec)
        if not grids:
            raise UserError(
                "qat found no layer it can quantize: "
                + ("; ".join(f"{n}: {r}" for n, r in reasons.items()) or "the model has no weights")
            )
        prepared, warnings = prepare_(
            model, grids, context.data.spec.blank(2), self.fold_batchnorm, equalize=False
        )
        calibrated = [] if self.activation is None else [self._calibrate_(model, context)]
        trained = FakeQuantizedModel(model, grids, self.weight, self.activation, self.power_of_two)
        warnings += _fixed(trained.fixed_sites(), calibrated)
        loss_for = objective.loss_for(
            model, inputs, self.loss, self.label_smoothing, self.schedule(), context
        )
        with loss_for as loss:
            history = fit_(trained, loss, self.schedule(), context, trained.groups())
            notes = objective.notes_of(loss)
        edits = [*prepared, trained.settle_(), *calibrated]
        artifact = replace(
            start,
            model=model.eval(),
            edits=(*start.edits, *edits),
            properties=start.properties | self.adds,
            key="",
        )
        rows = coverage_of_grids(model, grids, reasons)
        return Outcome(artifact, rows, history, warnings, notes=notes)

    def _calibrate_(self, model: nn.Module, context: Context) -> Edit:
        return quantize_activations_(
            model,
            self.ranges,
            context,
            bits=self.activation_bits,
            symmetric=self.activation_symmetric,
            power_of_two=self.power_of_two,
            images=self.calibration_images,
            batch_size=self.calibration_batch_size,
        )


def _fixed(numbers: Sequence[int], edits: Sequence[Edit]) -> tuple[str, ...]:
    """A warning about activation sites that the method leaves as they were calibrated."""
    if not numbers:
        return ()
    found = [edit["sites"][n] for edit in edits for n in numbers]
    names = ", ".join(f"{s['function']} {s['index']} of {s['layer'] or 'the model'}" for s in found)
    return (f"{len(found)} activation ranges stay as calibrated: {names}",)
