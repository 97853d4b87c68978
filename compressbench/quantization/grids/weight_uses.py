"""Finds the functions that use the parameters of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressbench.core.calls import function_name, tensors_in

_ESCAPES = {"item", "tolist", "numpy", "array", "float", "int", "bool"}  # to Python's values


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


class _Ways(TorchFunctionMode):
    """Notes which parameters the values in each storage may come from."""

    def __init__(self) -> None:
        super().__init__()
        self.known: defaultdict[int, set[int]] = defaultdict(set)
        self.escaped: set[int] = set()
        self.alive: list[Tensor] = []  # so that no storage is used twice

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        given, made = tensors_in([*args, *(kwargs or {}).values()]), tensors_in([output])
        found = self.behind(given)
        name = function_name(func)
        if name in _ESCAPES:
            self.escaped |= found
        written = made if made or not given else given[:1]  # as by y[...] = x
        for tensor in written:
            self.known[_storage(tensor)] |= found
        self.alive += written
        return output

    def behind(self, tensors: Iterable[Tensor]) -> set[int]:
        """The parameters that `tensors` may come from."""
        found: set[int] = set()
        for tensor in tensors:
            own = {id(tensor)} if isinstance(tensor, nn.Parameter) else set()
            found |= own | self.known[_storage(tensor)]
        return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def without_effect(model: nn.Module, example: Tensor) -> set[int]:
    """The ids of the parameters that no output of a forward pass can depend on, such as those of
    the last of several equal blocks, of which only one of two outputs is used.
    """
    ways = _Ways()
    with torch.no_grad(), ways:
        output = model(example)
    outputs = tensors_in([output])
    if not outputs:
        return set()
    return {id(p) for p in model.parameters()} - ways.behind(outputs) - ways.escaped
