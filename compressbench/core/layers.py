"""Layers of a model: which have weights, which share them, and their channel layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, for all convolutions and linear layers."""
    return {n: m for n, m in model.named_modules() if isinstance(m, (_ConvNd, nn.Linear))}


def weights(layer: nn.Module) -> int:
    """Number of weights of a module without its children: elements of parameters with >= 2 axes."""
    return sum(p.numel() for p in layer.parameters(recurse=False) if p.ndim > 1)


def layers_with_weights(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if weights(m)}


def weight_owners(model: nn.Module, layers: Iterable[str]) -> dict[str, str]:
    """Layer -> the first of `layers` with the same weight; itself unless weights are tied."""
    first: dict[int, str] = {}
    return {n: first.setdefault(id(model.get_parameter(f"{n}.weight")), n) for n in layers}


def parameter_names(model: nn.Module, parameter: Tensor) -> list[str]:
    """The names of a parameter, one for each module that holds it."""
    return [
        f"{name}.{leaf}" if name else leaf
        for name, module in model.named_modules()
        for leaf, held in module.named_parameters(recurse=False, remove_duplicate=False)
        if held is parameter
    ]


def tied_modules(model: nn.Module) -> set[str]:
    """Names of the modules that share any parameter with another module."""
    ids = {n: {id(p) for p in m.parameters(recurse=False)} for n, m in model.named_modules()}
    modules = Counter(parameter for parameters in ids.values() for parameter in parameters)
    return {n for n, parameters in ids.items() if any(modules[p] > 1 for p in parameters)}


def output_channels(layer: nn.Module) -> int:
    """Output channels of a convolution, output features of a linear layer."""
    return int(getattr(layer, "out_channels", 0) or len(layer.get_parameter("weight")))


def is_transposed(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and layer.transposed


def output_rows(layer: nn.Module, values: Tensor) -> Tensor:
    """Reshape `values`, one per weight of a layer, to [G, O / G, K]; a view if possible.

    G groups, O outputs, K weights per output. The weight of a convolution is [O, I / G, kernel..],
    of a linear layer [O, I], of a transposed convolution [I, O / G, kernel..].
    """
    groups = int(getattr(layer, "groups", 1))
    grouped = values.reshape(groups, len(values) // groups, *values.shape[1:])
    return (grouped.transpose(1, 2) if is_transposed(layer) else grouped).flatten(2)


def per_output(values: Tensor, weight: Tensor) -> Tensor:
    """Reshape `values` [O] so that they broadcast over `weight` [O, ..]."""
    return values.reshape(-1, *[1] * (weight.ndim - 1))
