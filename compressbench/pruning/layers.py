"""Selects the layers to prune and checks options, for all pruning stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from compressbench.core.errors import UserError
from compressbench.core.layers import layers_with_weights, prunable_layers, weight_owners
from compressbench.core.nearest import nearest_of_many
from compressbench.core.protocols import LearntCriterion
from compressbench.core.validation import shown
from compressbench.pruning.criteria.scores import is_criterion


def skipped(patterns: Iterable[str], names: Iterable[str], option: str = "skip") -> set[str]:
    """The names that match one of `patterns` (fnmatch).

    Raises UserError for a pattern that matches none; `option` names it in the message.
    """
    known, selected = list(names), set()
    for pattern in patterns:
        matches = {name for name in known if fnmatchcase(name, pattern)}
        if not matches:
            advice = nearest_of_many(pattern, known)
            raise UserError(
                f"{option}: no convolution or linear layer is named {pattern!r}{advice}"
            )
        selected |= matches
    return selected


def left_out(model: nn.Module, skip: Sequence[str], wanted: Sequence[str] | None) -> dict[str, str]:
    """Map each module with weights that must not be pruned to the reason.

    `skip` and `wanted` (the option `layers`; None selects all) are names or fnmatch patterns.
    Raises UserError for a pattern that matches no convolution or linear layer.
    """
    layers = prunable_layers(model)
    named = skipped(skip, layers)
    chosen = set(layers) if wanted is None else skipped(wanted, layers, "layers")
    owners = weight_owners(model, layers)
    kept = {owners[name] for name in named}
    left = {}
    for name, owner in owners.items():
        if name in named:
            left[name] = "named in skip"
        elif owner in kept:
            left[name] = "shares its weight with a layer named in skip"
        elif name not in chosen:
            left[name] = "not named in layers"
    others = layers_with_weights(model).keys() - layers.keys()
    return left | dict.fromkeys(others, "only convolutions and linear layers are pruned")


def check_criterion(criterion: Any) -> None:
    """Raise UserError unless `criterion` can score weights without training."""
    if isinstance(criterion, LearntCriterion):
        name = type(criterion).__name__.lower()
        raise UserError(f"criterion {name} is learned during training; use prune_gradual")
    if not is_criterion(criterion):
        raise UserError(f"criterion must be a pruning criterion, got {criterion!r}")


def check_names(option: str, names: Any) -> None:
    """Raise UserError unless `names` is a list of names or patterns."""
    listed = isinstance(names, (list, tuple)) and all(isinstance(n, str) for n in names)
    if not listed or (option == "layers" and not names):
        raise UserError(f"{option} must be a list of layer names, got {shown(names)}")


def criterion_passes(criterion: Any, train_images: int) -> tuple[int, int]:
    """The cost of a criterion as (images trained on, images only run forward)."""
    images = getattr(criterion, "images", 0)
    used = min(images, train_images) if isinstance(images, int) else 0
    trained, forwarded = getattr(criterion, "work", (0.0, 1.0))
    return round(trained * used), round(forwarded * used)
