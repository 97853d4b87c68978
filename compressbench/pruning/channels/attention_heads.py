"""Attention heads: finds their widths, and updates the number of heads after pruning."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compressbench.core.calls import Call, trace

_SPLITS = {"view", "reshape", "unflatten"}
_COUNTS = ("heads", "num_heads", "n_heads", "nhead", "num_attention_heads")  # names of attributes


def head_widths(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Map each linear layer whose output [.., h * d] is split into [.., h, d] to d."""
    with torch.no_grad():
        calls, _ = trace(model, example)
    layers = {id(m.weight): n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    widths = {}
    for call in calls:
        if call.function in _SPLITS and len(call.sources) == 1:
            source = calls[call.sources[0]]
            names = [layers[p] for p in source.parameters if p in layers]
            width = _split(source, call)
            if source.function == "linear" and names and width:
                widths[names[0]] = width
    return widths


def _split(before: Call, after: Call) -> int:
    """Width d if `after` splits the last axis h * d of `before` into two axes (h, d), else 0."""
    if not (isinstance(before.output, Tensor) and isinstance(after.output, Tensor)):
        return 0
    old, new = before.output.shape, after.output.shape
    if len(new) != len(old) + 1 or new[:-2] != old[:-1]:
        return 0
    return int(new[-1])


def set_counts_(small: nn.Module, original: nn.Module, widths: Mapping[str, int]) -> None:
    """Update attributes such as `num_heads` of attention modules to the remaining heads."""
    for name, width in widths.items():
        old = original.get_submodule(name).get_parameter("weight").shape[0] // width
        new = small.get_submodule(name).get_parameter("weight").shape[0] // width
        owner = small.get_submodule(name.rpartition(".")[0])
        for attribute in _COUNTS:
            if vars(owner).get(attribute) == old:
                setattr(owner, attribute, new)
