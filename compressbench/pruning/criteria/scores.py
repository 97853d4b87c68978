"""Computes and checks the scores of a criterion; converts between weight and channel scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from compressbench.core.digests import named
from compressbench.core.errors import CheckFailedError
from compressbench.core.layers import is_transposed, output_channels, output_rows, per_output
from compressbench.core.types import Context


def is_criterion(value: Any) -> bool:
    """Whether `value` has the interface of `Criterion` or `ModelCriterion`."""
    return callable(value) or callable(getattr(value, "of_model", None))


def scores_of(
    criterion: Any, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
) -> dict[str, Tensor]:
    """The criterion's scores of `layers`, float32 on the CPU, by layer name.

    Each has the shape of the layer's weight or [out channels]. Raises CheckFailedError for other
    shapes and for values that are not finite.
    """
    if callable(getattr(criterion, "of_model", None)):
        asked = [repr([criterion, list(layers)]), *named(model.state_dict())]
        journal = context.journal.within("scores", *asked)
        scores = criterion.of_model(model, layers, replace(context, journal=journal))
    else:
        scores = criterion(layers, context)
    for name, layer in layers.items():
        weight = layer.get_parameter("weight")
        shapes = (weight.shape, torch.Size([output_channels(layer)]))
        if name not in scores or scores[name].shape not in shapes:
            got = tuple(scores[name].shape) if name in scores else "none"
            raise CheckFailedError(
                f"importance of {name}: expected scores of shape {tuple(shapes[0])} or "
                f"{tuple(shapes[1])}, got {got}"
            )
        if not bool(torch.isfinite(scores[name]).all()):
            raise CheckFailedError(f"importance of {name}: NaN or infinity")
    return {name: scores[name].detach().float().cpu() for name in layers}


def of_weights(layer: nn.Module, score: Tensor) -> Tensor:
    """Scores in the shape of the weight; [out channels] scores are repeated for each weight."""
    weight = layer.get_parameter("weight")
    if score.ndim > 1:
        return score
    if is_transposed(layer):  # weight [in, out / groups, ...], with separate outputs per group
        groups = int(getattr(layer, "groups", 1))
        per_group = score.view(groups, 1, -1)
        rows = per_group.expand(groups, len(weight) // groups, -1).reshape(len(weight), -1)
        return rows.view(*weight.shape[:2], *[1] * (weight.ndim - 2)).expand(weight.shape)
    return per_output(score, weight).expand(weight.shape)


def of_channels(layer: nn.Module, score: Tensor) -> Tensor:
    """Scores of output channels, float64 [out channels]; weight scores are summed per channel."""
    if score.ndim == 1:
        return score.double()
    return output_rows(layer, score.double()).sum(2).flatten()


def over_mean(score: Tensor) -> Tensor:
    """`score` divided by its mean absolute value, to compare layers with different units."""
    size = score.double().abs().mean().clamp_min(torch.finfo(torch.float32).tiny)
    return score / size.to(score.dtype)
