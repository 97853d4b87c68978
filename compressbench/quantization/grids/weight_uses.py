"""Finds the functions that use the parameters of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressbench.core.calls import function_name, tensors_in


class _Uses(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.functions: defaultdict[int, set[str]] = defaultdict(set)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if tensors_in([output]):  # querying a shape does not count
            for tensor in tensors_in([*args, *(kwargs or {}).values()]):
                if isinstance(tensor, nn.Parameter):
                    self.functions[id(tensor)].add(function_name(func))
        return output


def weight_uses(model: nn.Module, example: Tensor) -> Mapping[int, set[str]]:
    """Map the id of each parameter to the names of functions that use it in a forward pass."""
    uses = _Uses()
    with torch.no_grad(), uses:
        model(example)
    return dict(uses.functions)
