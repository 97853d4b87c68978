"""Knows whether larger values of an option mean more or less compression."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

_LIMITS = frozenset({"params", "macs", "onnx_bytes", "latency", "budget"})
_THRESHOLDS = frozenset({"threshold", "activation_threshold"})
_LARGER_IS_MORE = _THRESHOLDS | {
    "sparsity",
    "max_layer_sparsity",
    "pattern",  # ordered by its share of zeros
    "coupled",  # true also prunes channels that several layers share
    "group_size",  # fewer scales
    "symmetric",  # no zero points
}
_LARGER_IS_LESS = _LIMITS | {
    "bits",
    "activation_bits",
    "min_channels",
    # options of models: the built-in ones, and those of transformers in conf/model
    "width",
    "base_width",
    "depth",
    "hidden",
    "expansion",
    "embedding_size",
    "hidden_sizes",
    "depths",
    "dim",
    "hidden_dim",
    "n_layers",
}


def direction(place: str) -> int:
    """1 if larger values compress more, -1 if they compress less, 0 if neither is known.

    `place` is the option's path in the config, such as `recipe.stages.prune.sparsity`.
    """
    *parents, name = place.split(".")
    if "widths" in parents:  # bits per layer, keyed by layer name
        return -1
    return (name in _LARGER_IS_MORE) - (name in _LARGER_IS_LESS)


def least_to_most(place: str, choices: Sequence[Any]) -> list[Any]:
    """Sort `choices` from the least to the most compressed; [] if they have no known order.

    Limits in absolute numbers cannot be compared with shares and factors such as "2x".
    """
    sign, name = direction(place), place.rpartition(".")[2]
    amounts = [_amount(name, choice) for choice in choices]
    known = [amount for amount in amounts if amount is not None]
    absolute = {isinstance(a, int) for a in known if name in _LIMITS and a != math.inf}
    if not sign or len(known) < len(choices) or len(absolute) > 1:
        return []
    pairs = sorted(zip(known, choices, strict=True), key=lambda pair: sign * pair[0])
    return [choice for _, choice in pairs]


def _amount(name: str, choice: Any) -> int | float | None:
    """The number to sort a choice by; None for text without one.

    "2x" becomes one half, the pattern "2:4" its share of zeros, a list its sum, and null for a
    limit or a threshold the value that prunes nothing.
    """
    if not isinstance(choice, str):
        return choice if isinstance(choice, (int, float)) else None
    choice = choice.strip("'\"")
    if choice == "null" and name in _LIMITS | _THRESHOLDS:
        return math.inf if name in _LIMITS else 0.0
    if name in _LIMITS and (factor := re.fullmatch(r"(\d+(?:\.\d+)?)x", choice)):
        return 1 / float(factor[1])
    if name == "pattern" and (kept := re.fullmatch(r"(\d+):(\d+)", choice)):
        return 1 - int(kept[1]) / int(kept[2])
    if re.fullmatch(r"\[[\d\s,]+\]", choice):
        return int(sum(json.loads(choice)))
    return None
