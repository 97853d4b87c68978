"""Layers of any model: which have weights, and how their channels lie in them."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer, of all convolutions and linear layers."""
    return {n: m for n, m in model.named_modules() if isinstance(m, (_ConvNd, nn.Linear))}


def weights(layer: nn.Module) -> int:
    """Weights of a module itself: elements of its own parameters of two axes or more."""
    return sum(p.numel() for p in layer.parameters(recurse=False) if p.ndim > 1)


def layers_with_weights(model: nn.Module) -> dict[str, nn.Module]:
    return {n: m for n, m in model.named_modules() if weights(m)}


def output_channels(layer: nn.Module) -> int:
    """Output channels of a convolution, output features of a linear layer."""
    return int(getattr(layer, "out_channels", 0) or len(layer.get_parameter("weight")))


def is_transposed(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvNd) and layer.transposed
