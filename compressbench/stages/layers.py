"""What the pruning stages share: the layers, those to skip, their importance, their options."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compressbench.core import CheckFailedError, Context, Criterion, UserError

Scope = Literal["global", "layer"]


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, of all convolutions and linear layers."""
    return {n: m for n, m in model.named_modules() if isinstance(m, (_ConvNd, nn.Linear))}


def weights(layer: nn.Module) -> int:
    """Weights of a module itself: elements of its own parameters of two axes or more."""
    return sum(p.numel() for p in layer.parameters(recurse=False) if p.ndim > 1)


def layers_with_weights(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if weights(m)}


def skipped(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """The names that match one of `patterns` (fnmatch). UserError for a pattern without match."""
    known, found = list(names), set()
    for pattern in patterns:
        matches = {name for name in known if fnmatchcase(name, pattern)}
        if not matches:
            close = difflib.get_close_matches(pattern, known, n=1, cutoff=0.0)
            advice = f"; the nearest name is {close[0]}" if close else ""
            raise UserError(f"skip: no convolution or linear layer is named {pattern!r}{advice}")
        found |= matches
    return found


def importance(
    criterion: Criterion, layers: Mapping[str, nn.Module], context: Context
) -> dict[str, Tensor]:
    """The criterion's scores, float32; CheckFailedError where shape or values cannot be used."""
    scores = criterion(layers, context)
    for name, layer in layers.items():
        weight = layer.get_parameter("weight")
        if name not in scores or scores[name].shape != weight.shape:
            got = tuple(scores[name].shape) if name in scores else "nothing"
            raise CheckFailedError(f"importance of {name}: {got} for {tuple(weight.shape)} weights")
        if not bool(torch.isfinite(scores[name]).all()):
            raise CheckFailedError(f"importance of {name}: NaN or infinity")
    return {name: scores[name].detach().float().cpu() for name in layers}


def check_choices(criterion: Any, scope: Any, skip: Any) -> None:
    """UserError unless the options that both pruning stages have are what they should be."""
    if not callable(criterion):
        raise UserError(f"criterion must be a pruning criterion, got {criterion!r}")
    if scope not in ("global", "layer"):
        raise UserError(f'scope must be "global" or "layer", got {scope!r}')
    if isinstance(skip, str) or not all(isinstance(pattern, str) for pattern in skip):
        raise UserError(f"skip must be a list of layer names, got {skip!r}")
