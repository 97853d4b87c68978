"""Coverage of a stage: what it did to each module with weights, and why it left the others."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from compressbench.core.layers import layers_with_weights, weights
from compressbench.core.types import Coverage

Change = tuple[int, str]  # how many of a module's weights a stage has touched, and how


def coverage(
    model: nn.Module, changes: Mapping[str, Change], left: Mapping[str, str], word: str = "left"
) -> tuple[Coverage, ...]:
    """One row for each module with weights, in the order of the model.

    Of a module that is not among `changes` no weight is touched, and the row says why it was
    `left`: "`word`: reason".
    """
    rows = []
    for name, layer in layers_with_weights(model).items():
        touched, detail = changes.get(name, (0, f"{word}: {left.get(name, '')}"))
        kind = type(layer).__name__
        rows.append(Coverage(name or "model", kind, weights(layer), touched, detail))
    return tuple(rows)
