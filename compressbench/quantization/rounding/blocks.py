"""Finds the blocks of a model, whose layers are fitted together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

MOST_LAYERS = 8  # layers per block; larger modules are whole stages or plain chains


@dataclass(frozen=True)
class Unit:
    """A module to reconstruct, and its layers whose weights are quantized."""

    name: str
    layers: tuple[str, ...]

    @property
    def is_block(self) -> bool:
        """Whether the module is a block rather than a single layer."""
        return self.layers != (self.name,)

    def weight_of(self, layer: str) -> str:
        """The name of a layer's weight relative to the module."""
        return f"{layer}.weight".removeprefix(f"{self.name}.")


def find_units(model: nn.Module, layers: Sequence[str], example: Tensor) -> list[Unit]:
    """Divide `layers`, given in forward order, into blocks and single layers.

    A block is a module inside the model with 2 to 8 of the layers and no smaller block in it,
    which the forward pass calls once, with a single tensor as input and output.
    """
    simple = _simple_modules(model, example)
    held = {name: [n for n in layers if n.startswith(f"{name}.")] for name in simple}
    fit = [name for name in simple if 2 <= len(held[name]) <= MOST_LAYERS]
    blocks = [name for name in fit if not any(n.startswith(f"{name}.") for n in fit)]
    block_of = {layer: name for name in blocks for layer in held[name]}
    units = dict.fromkeys(block_of.get(layer, layer) for layer in layers)
    return [Unit(name, tuple(held[name]) if name in blocks else (name,)) for name in units]


def _simple_modules(model: nn.Module, example: Tensor) -> list[str]:
    """The modules inside `model` that are called once, with a single tensor as input and output."""
    calls: defaultdict[str, list[bool]] = defaultdict(list)
    handles = []
    for name, module in model.named_modules():

        def note(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            given = [*args, *kwargs.values()]
            single = len(given) == 1 and isinstance(given[0], Tensor) and not kwargs
            calls[name].append(single and isinstance(output, Tensor))

        handles.append(module.register_forward_hook(note, with_kwargs=True))
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name, simple in calls.items() if name and simple == [True]]
