"""Scoring the weights of layers and zeroing some, as all pruning stages do."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from compressbench.core.edits import masked_layers, set_mask_
from compressbench.core.layers import layers_with_weights, weights
from compressbench.core.protocols import Criterion, ModelCriterion
from compressbench.core.types import (
    Context,
    Coverage,
    Edit,
)
from compressbench.pruning.criteria.scores import of_weights, scores_of


def weight_scores(
    criterion: Criterion | ModelCriterion,
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    context: Context,
) -> dict[str, Tensor]:
    """The criterion's importance of every weight of `layers`, float32."""
    scores = scores_of(criterion, model, layers, context)
    return {name: of_weights(layer, scores[name]) for name, layer in layers.items()}


def mask_(layers: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> list[Edit]:
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


def zeroed(
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
