"""Post-training quantization of weights, and of activations where an observer is given."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import nn

from compressbench.checks import check_integer
from compressbench.core import (
    ACTIVATION_QUANTIZED,
    TRAINED,
    WEIGHT_QUANTIZED,
    Artifact,
    CheckFailedError,
    Context,
    Coverage,
    DataSpec,
    Edit,
    Observer,
    Outcome,
    UserError,
)
from compressbench.quantizers import activations
from compressbench.quantizers.grid import (
    Granularity,
    Grid,
    GridWeight,
    WeightQuantizer,
)
from compressbench.quantizers.weights import weight_uses
from compressbench.stages.batchnorm import reestimate_batchnorm_
from compressbench.stages.calibrate import calibrate_

ACTIVATION_BITS = 8  # what ONNX Runtime has integer kernels for
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
FUNCTIONS = {"conv1d", "conv2d", "conv3d", "linear"}


@dataclass(frozen=True)
class Quantize:
    """Weights of convolutions and linear layers on `bits`-bit grids, activations on uint8 ones.

    The order: weights, unfolded, by the method `weight`; BatchNorm statistics on
    `batchnorm_images` training images; ranges of the activations by the observer `activation` on
    `calibration_images` of them (None leaves activations in float). `bits` in [2, 8];
    `granularity` "channel" (one scale per output channel) or "tensor". Weights that are zero stay
    zero. Layers that cannot be quantized are in the coverage, with the reason.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    destroys: ClassVar[frozenset[str]] = frozenset({WEIGHT_QUANTIZED, ACTIVATION_QUANTIZED})

    weight: WeightQuantizer
    activation: Observer | None = None
    bits: int = 8
    granularity: Granularity = "channel"
    batchnorm_images: int = 1024
    calibration_images: int = 512
    batch_size: int = 64

    def __post_init__(self) -> None:
        self.grid()
        check_integer("batchnorm_images", self.batchnorm_images, 2)
        check_integer("calibration_images", self.calibration_images, 1)
        check_integer("batch_size", self.batch_size, 1)
        if not callable(self.weight):
            raise UserError(f"weight must be a weight quantizer, got {self.weight!r}")
        if self.activation is not None and not _is_observer(self.activation):
            raise UserError(f"activation must be an observer or null, got {self.activation!r}")

    @property
    def adds(self) -> frozenset[str]:
        extra = () if self.activation is None else (ACTIVATION_QUANTIZED,)
        return frozenset({WEIGHT_QUANTIZED, *extra})

    def grid(self) -> Grid:
        return Grid(self.bits, self.granularity)

    def passes(self, train_images: int) -> tuple[int, int]:
        calibration = 0 if self.activation is None else min(self.calibration_images, train_images)
        return 0, min(self.batchnorm_images, train_images) + calibration

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        start = inputs["model"]
        model = deepcopy(start.model).cpu().eval()
        reasons = _reasons(model, context.data.spec)
        grids = {name: self.grid() for name, reason in reasons.items() if not reason}
        if not grids:
            raise UserError(
                "quantize found no layer it can quantize: "
                + ("; ".join(f"{n}: {r}" for n, r in reasons.items()) or "the model has no weights")
            )
        edits: list[Edit] = [_quantize_weights_(model, grids, self.weight, context)]
        reestimate_batchnorm_(model, context, self.batchnorm_images)
        if self.activation is not None:
            edits.append(self._quantize_activations_(model, context))
        artifact = replace(
            start,
            model=model.eval(),
            edits=(*start.edits, *edits),
            properties=start.properties | self.adds,
            key="",
        )
        return Outcome(artifact, _coverage(model, grids, reasons))

    def _quantize_activations_(self, model: nn.Module, context: Context) -> Edit:
        edit: Edit = {
            "kind": "activation_grid",
            "sites": activations.find_sites(model, example(context.data.spec)),
            "bits": ACTIVATION_BITS,
            "calibration": {
                "images": self.calibration_images,
                "batch_size": self.batch_size,
                "observer": _config(self.activation),
            },
        }
        activations.attach_(model, edit)
        calibrate_(model, edit, context)
        return edit


def example(spec: DataSpec) -> torch.Tensor:
    """Two samples of zeros: enough to see which functions a model calls."""
    return torch.zeros(2, *spec.input_shape)


def _is_observer(value: Any) -> bool:
    methods = all(callable(getattr(value, name, None)) for name in ("start", "update", "range"))
    return methods and is_dataclass(value) and not isinstance(value, type)


def _config(observer: Any) -> dict[str, Any]:
    """The `_target_` config that builds `observer` again: a later stage calibrates with it."""
    kind = type(observer)
    return {"_target_": f"{kind.__module__}.{kind.__qualname__}", **asdict(observer)}


def _reasons(model: nn.Module, spec: DataSpec) -> dict[str, str]:
    """Every module that holds weights (two axes or more) -> why it stays in float, or "".

    A layer is quantized when the model hands its very weight to a convolution or linear function,
    and to nothing else: only then is the grid in the module the grid that an export sees.
    """
    uses = weight_uses(model, example(spec))
    reasons = {}
    for name, layer in model.named_modules():
        own = [p for p in layer.parameters(recurse=False) if p.ndim > 1]
        if not own:
            continue
        if not isinstance(layer, LAYERS):
            reasons[name] = "only convolutions and linear layers are quantized"
            continue
        functions = uses.get(id(layer.weight), set())
        other = sorted(functions - FUNCTIONS)
        reasons[name] = (
            f"its weight also goes through {', '.join(other)}"
            if other
            else ("" if functions else "not used in the forward pass")
        )
    return reasons


def _quantize_weights_(
    model: nn.Module, grids: Mapping[str, Grid], method: WeightQuantizer, context: Context
) -> Edit:
    """Put the weights of the layers in `grids` on their grids; a tied weight once."""
    owners: dict[int, str] = {}
    for name in grids:
        owners.setdefault(id(model.get_parameter(f"{name}.weight")), name)
    for name in owners.values():
        if not bool(torch.isfinite(model.get_parameter(f"{name}.weight")).all()):
            raise CheckFailedError(f"{name}.weight holds NaN or infinity before quantization")
    quantized = method(model, {name: grids[name] for name in owners.values()}, context)
    for name in grids:
        weight = model.get_parameter(f"{name}.weight")
        result = quantized[owners[id(weight)]]
        _check_result(name, weight, result, grids[name])
        model.get_submodule(name).register_buffer("weight_scale", result.scale.clone())
    with torch.no_grad():
        for name in owners.values():
            model.get_parameter(f"{name}.weight").copy_(quantized[name].weight)
    layers = {n: {"bits": g.bits, "granularity": g.granularity} for n, g in grids.items()}
    return {"kind": "weight_grid", "layers": layers}


def _check_result(name: str, weight: torch.Tensor, result: GridWeight, grid: Grid) -> None:
    """Fail closed on a method that leaves its grid or revives weights that were zero."""
    if result.integers.shape != weight.shape:
        raise CheckFailedError(f"{name}: {tuple(result.integers.shape)} integers for its weight")
    if int(result.integers.abs().max()) > grid.largest:
        raise CheckFailedError(f"{name}: integers beyond {grid.bits} bits")
    if bool(result.integers[weight == 0].any()):
        raise CheckFailedError(f"{name}: a weight that was zero is not zero any more")


def _coverage(
    model: nn.Module, grids: Mapping[str, Grid], reasons: Mapping[str, str]
) -> tuple[Coverage, ...]:
    rows = []
    for name, reason in reasons.items():
        layer = model.get_submodule(name)
        total = sum(p.numel() for p in layer.parameters(recurse=False) if p.ndim > 1)
        grid = grids.get(name)
        detail = f"{grid.bits}-bit per {grid.granularity}" if grid else f"left float: {reason}"
        touched = total if grid else 0
        rows.append(Coverage(name or "model", type(layer).__name__, total, touched, detail))
    return tuple(rows)
