"""Scores weights, sets masks and reports coverage, for all unstructured pruning stages."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from compressbench.core.coverage import coverage
from compressbench.core.edits import masked_layers, set_mask_
from compressbench.core.layers import weight_owners, weights
from compressbench.core.protocols import Criterion, ModelCriterion
from compressbench.core.types import Context, Coverage, Edit
from compressbench.pruning.criteria.scores import of_weights, scores_of


def weight_scores(
    criterion: Criterion | ModelCriterion,
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    context: Context,
) -> dict[str, Tensor]:
    """The criterion's importance of every weight of `layers`, float32, in the weight's shape."""
    scores = scores_of(criterion, model, layers, context)
    return {name: of_weights(layer, scores[name]) for name, layer in layers.items()}


def mask_(layers: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> list[Edit]:
    """Set the masks that contain zeros; the returned edit has the layers without a mask before.

    A layer appears only in its first mask edit: a later `resize` edit relies on its buffer.
    """
    fresh = []
    for name, mask in masks.items():
        if bool(mask.all()):
            continue
        if not masked_layers(layers[name]):
            fresh.append(name)
        set_mask_(layers[name], mask.clone())
    return [{"kind": "mask", "layers": fresh}] if fresh else []


def nonzero_weights(layers: Mapping[str, nn.Module]) -> dict[str, int]:
    """Map each layer to the number of its nonzero weights."""
    return {n: int(layer.get_parameter("weight").count_nonzero()) for n, layer in layers.items()}


def zeroed(
    model: nn.Module, before: Mapping[str, int], left: Mapping[str, str]
) -> tuple[Coverage, ...]:
    """Coverage of pruning: the weights of each layer that have become zero.

    `before` are the `nonzero_weights` of the pruned layers before the stage, `left` the reasons
    of the layers that were not pruned. A tied weight counts in the first of its layers.
    """
    now = nonzero_weights({name: model.get_submodule(name) for name in before})
    changes = {}
    for name, owner in weight_owners(model, before).items():
        share = 1 - now[name] / weights(model.get_submodule(name))
        floor = ", its most important weight is kept" if now[name] == 1 else ""
        touched = before[name] - now[name] if owner == name else 0
        changes[name] = (touched, f"sparsity {share:.2f}{floor}")
    return coverage(model, changes, left)
