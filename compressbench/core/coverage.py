"""Builds the coverage of a stage: which modules it changed, and why it skipped the rest."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from compressbench.core.layers import layers_with_weights, weights
from compressbench.core.types import Coverage

Change = tuple[int, str]  # number of weights of a module that a stage touched, and how


def coverage(
    model: nn.Module, changes: Mapping[str, Change], left: Mapping[str, str], word: str = "left"
) -> tuple[Coverage, ...]:
    """One row per module with weights, in model order.

    A module that is not in `changes` counts as untouched; its row gives the reason from `left`, as
    "`word`: reason".
    """
    rows = []
    for name, layer in layers_with_weights(model).items():
        touched, detail = changes.get(name, (0, f"{word}: {left.get(name, '')}"))
        kind = type(layer).__name__
        rows.append(Coverage(name or "model", kind, weights(layer), touched, detail))
    return tuple(rows)
