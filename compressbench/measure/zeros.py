"""Do pruned weights arrive as zeros where a model computes with them?"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressbench.core.calls import function_name, tensors_in
from compressbench.core.edits import masked_layers

_PRODUCTS = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d",
             "conv_transpose3d")  # fmt: skip


def lost_zeros(model: nn.Module, inputs: Tensor) -> list[str]:
    """The masked layers that compute with other values than zero where their mask is false, such
    as those that standardize their weight in every call.
    """
    layers = masked_layers(model)
    watch = _Weights(layers)
    handles = [
        handle
        for name, layer in layers.items()
        for handle in (
            layer.register_forward_pre_hook(partial(watch.begin, name)),
            layer.register_forward_hook(watch.end),
        )
    ]
    try:
        with torch.no_grad(), watch:
            model.eval()(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in layers if name in watch.lost]


class _Weights(TorchFunctionMode):
    """Compares the weights in the calls of each layer with its mask."""

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        super().__init__()
        self.layers, self.running = layers, [""]
        self.lost: set[str] = set()

    def begin(self, name: str, layer: nn.Module, args: Any) -> None:
        self.running.append(name)

    def end(self, layer: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = self.running[-1]
        if name and function_name(func) in _PRODUCTS:
            mask = self.layers[name].get_buffer("weight_mask")
            for tensor in tensors_in([*args, *(kwargs or {}).values()]):
                if tensor.shape == mask.shape and bool(tensor[~mask].any()):
                    self.lost.add(name)
        return func(*args, **(kwargs or {}))
