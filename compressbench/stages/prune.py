"""Unstructured pruning: single weights become zero and stay so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor, nn

from compressbench.artifact import activation_grid, masked_layers, set_mask_, weight_bits
from compressbench.checks import check_integer, check_positive, check_share
from compressbench.collectives import assert_same_on_ranks
from compressbench.core import (
    MASKED,
    TRAINED,
    WEIGHT_QUANTIZED,
    Artifact,
    CheckFailedError,
    Context,
    Coverage,
    Criterion,
    Edit,
    Outcome,
    Stage,
    UserError,
)
from compressbench.quantizers.activations import CHILD, ActivationQuantizers
from compressbench.stages import masking
from compressbench.stages.batchnorm import reestimate_batchnorm_
from compressbench.stages.calibrate import calibrate_
from compressbench.stages.layers import (
    Scope,
    check_choices,
    importance,
    layers_with_weights,
    prunable_layers,
    skipped,
    weights,
)

GRID_BITS = 8  # coarser grids lose too much: their integers are few, and no finetune may follow
GRID_SPARSITY = 0.5


@dataclass(frozen=True)
class Prune:
    """Zero the least important weights of convolutions and linear layers.

    Either `sparsity`: exactly round(sparsity * n) of the n weights are zero afterwards, zeros that
    were there before included, of all layers together (`scope` "global") or of each layer; or
    `threshold`: every weight of less importance goes, in either scope. Of equal weights those of
    lower index go first; the most important weight of a layer always stays. Layers that match
    `skip` (names or fnmatch patterns) are left and do not count. BatchNorm statistics are then
    measured on `batchnorm_images` training images, and activations calibrated again.

    Weights on integer grids keep their scales; the grids must have 8 bits, and at most half of
    the weights may go, since no float finetune can follow.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset({MASKED})
    destroys: ClassVar[frozenset[str]] = frozenset()

    criterion: Criterion
    sparsity: float | None = None
    threshold: float | None = None
    scope: Scope = "global"
    skip: Sequence[str] = ()
    batchnorm_images: int = 1024

    def __post_init__(self) -> None:
        check_choices(self.criterion, self.scope, self.skip)
        check_integer("batchnorm_images", self.batchnorm_images, 2)
        if (self.sparsity is None) == (self.threshold is None):
            raise UserError(
                "exactly one of sparsity and threshold must be set, "
                f"got sparsity={self.sparsity!r} and threshold={self.threshold!r}"
            )
        if self.sparsity is not None:
            check_share("sparsity", self.sparsity)
        else:
            check_positive("threshold", self.threshold)

    def check_line(self, earlier: Sequence[Stage]) -> None:
        """Refuse before anything runs what `_check_grids` would refuse after a training."""
        for stage in earlier:
            if WEIGHT_QUANTIZED not in stage.adds:
                continue
            scheme = getattr(stage, "scheme", None)
            if scheme is None:  # a codebook: zero may not be one of its values
                raise UserError("pruning after a codebook is not possible: prune before it")
            other = scheme().all_bits() - {GRID_BITS}
            if other:
                raise UserError(
                    f"pruning after quantization needs {GRID_BITS}-bit weights, got "
                    f"bits={min(other)}: no finetune can follow on a grid"
                )
            if self.sparsity is not None and self.sparsity > GRID_SPARSITY:
                raise UserError(
                    f"sparsity after quantization must be at most {GRID_SPARSITY}, "
                    f"got {self.sparsity}: no finetune can follow on a grid"
                )

    def passes(self, train_images: int) -> tuple[int, int]:
        return 0, min(self.batchnorm_images, train_images)

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        start = inputs["model"]
        model = deepcopy(start.model).cpu().eval()
        left = _left(model, self.skip)
        layers = {n: m for n, m in prunable_layers(model).items() if n not in left}
        masks = self._masks(layers, context)
        _check_grids(start, masks)
        before = {n: int(layers[n].get_parameter("weight").count_nonzero()) for n in masks}
        edits = _mask_(layers, masks)
        coverage = _coverage(model, masks, before, left)
        if not any(row.touched for row in coverage):
            raise CheckFailedError(self._nothing(masks))
        with activations_in_float(model):
            reestimate_batchnorm_(model, context, self.batchnorm_images)
        grid = activation_grid(start.edits)
        if grid is not None:
            calibrate_(model, grid, context)
        artifact = replace(
            start,
            model=model.eval(),
            edits=(*start.edits, *edits),
            properties=start.properties | self.adds,
            key="",
        )
        return Outcome(artifact, coverage)

    def _masks(self, layers: Mapping[str, nn.Module], context: Context) -> dict[str, Tensor]:
        """Layer -> what stays of its weight; layers with one tied weight get the same mask."""
        owners: dict[int, str] = {}
        for name, layer in layers.items():
            owners.setdefault(id(layer.weight), name)
        if not owners:
            raise UserError("prune: no convolution or linear layer is left to prune")
        owned = {name: layers[name] for name in owners.values()}
        scores = importance(self.criterion, owned, context)
        zeros = {name: layer.get_parameter("weight").detach() == 0 for name, layer in owned.items()}
        if self.sparsity is not None:
            masks = masking.by_share(scores, zeros, self.sparsity, self.scope == "global")
        else:
            masks = masking.by_threshold(scores, zeros, self.threshold or 0.0)
        assert_same_on_ranks(masking.digest(masks), "which weights were pruned")
        return {name: masks[owners[id(layer.weight)]] for name, layer in layers.items()}

    def _nothing(self, masks: Mapping[str, Tensor]) -> str:
        total = sum(mask.numel() for mask in masks.values())
        zeros = sum(int((~mask).sum()) for mask in masks.values())
        what = (
            f"threshold={self.threshold}" if self.sparsity is None else f"sparsity={self.sparsity}"
        )
        return f"prune touched nothing: {what}, and {zeros} of {total} weights were zero before"


@contextmanager
def activations_in_float(model: nn.Module) -> Iterator[None]:
    """Let activations pass their quantizers unchanged: the ranges are those of older weights."""
    quantizers = dict(model.named_children()).get(CHILD)
    if not isinstance(quantizers, ActivationQuantizers):
        yield
        return
    quantizers.observe = lambda number, values: None
    try:
        yield
    finally:
        quantizers.observe = None


def _left(model: nn.Module, skip: Sequence[str]) -> dict[str, str]:
    """Name -> reason, of the modules with weights that are not pruned."""
    layers = prunable_layers(model)
    named = skipped(skip, layers)
    kept = {id(layers[name].weight) for name in named}
    left = {
        n: "named in skip" if n in named else "its weight is that of a layer named in skip"
        for n, layer in layers.items()
        if id(layer.weight) in kept
    }
    others = layers_with_weights(model).keys() - layers.keys()
    return left | dict.fromkeys(others, "only convolutions and linear layers are pruned")


def _check_grids(start: Artifact, masks: Mapping[str, Tensor]) -> None:
    """The rule for weights on integer grids: 8 bits, at most half of them zero."""
    bits = weight_bits(start.edits)
    if not bits:
        return
    coarse = next((n for n, b in bits.items() if b != GRID_BITS), None)
    if coarse is not None:
        raise UserError(
            f"prune after quantize needs {GRID_BITS}-bit weights, {coarse} has {bits[coarse]}: "
            "no finetune can follow on a grid"
        )
    total = sum(mask.numel() for mask in masks.values())
    share = sum(int((~mask).sum()) for mask in masks.values()) / total
    if share > GRID_SPARSITY + 0.5 * len(masks) / total:  # each layer may round up
        raise UserError(
            f"prune after quantize may zero at most {GRID_SPARSITY} of the weights, got "
            f"{share:.3g}: no finetune can follow on a grid"
        )


def _mask_(layers: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> list[Edit]:
    """Set the masks that hold zeros; the edit names the layers that had none before.

    The edit that named a layer first stays where it is: a `resize` after it knows its buffer.
    """
    fresh = []
    for name, mask in masks.items():
        if bool(mask.all()):
            continue
        if not masked_layers(layers[name]):
            fresh.append(name)
        set_mask_(layers[name], mask.clone())
    return [{"kind": "mask", "layers": fresh}] if fresh else []


def _coverage(
    model: nn.Module,
    masks: Mapping[str, Tensor],
    before: Mapping[str, int],
    left: Mapping[str, str],
) -> tuple[Coverage, ...]:
    """One row a module with weights; `touched` counts weights that were not zero before."""
    rows, counted = [], set[int]()
    for name, layer in layers_with_weights(model).items():
        total, touched, detail = weights(layer), 0, f"left: {left.get(name, '')}"
        if name in masks:
            weight = layer.get_parameter("weight")
            nonzero = int(weight.count_nonzero())
            touched = 0 if id(weight) in counted else before[name] - nonzero
            floor = ", its most important weight is kept" if nonzero == 1 else ""
            detail = f"sparsity {1 - nonzero / total:.2f}{floor}"
            counted.add(id(weight))
        rows.append(Coverage(name or "model", type(layer).__name__, total, touched, detail))
    return tuple(rows)
