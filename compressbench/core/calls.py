"""Traces the torch functions that a model calls, with their producers and consumers."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@dataclass
class Call:
    """One traced call; `sources` and `consumers` are positions of other calls."""

    function: str
    index: int
    layer: str
    sources: list[int]
    parameters: frozenset[int]  # ids of the parameters among its arguments
    output: Any  # kept alive so that ids stay unique
    consumers: list[int] = field(default_factory=list)


def function_name(function: Callable[..., Any]) -> str:
    """The name of a function; in-place and operator forms share one (`__iadd__` -> "add")."""
    name = getattr(function, "__name__", "").strip("_")
    return name[1:] if name in {"iadd", "imul", "isub", "idiv", "itruediv"} else name


Site = tuple[str, int]  # a function and the index of its call, as in `Call`


class _Counts:
    """Counts the calls of each function in a forward pass."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def site(self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Site:
        """Count this call and return its site."""
        name = function_name(func)
        index = self.counts.get(name, 0)
        self.counts[name] = index + takes_floats(args, kwargs)
        return name, index


class _Recorder(TorchFunctionMode):
    def __init__(self, layers: list[str]) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.producer: dict[int, int] = {}
        self.counts = _Counts()
        self.layers = layers

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name, index = self.counts.site(func, args, kwargs or {})
        results = [t for t in tensors_in([output]) if t.is_floating_point()]
        if results:
            tensors = tensors_in([*args, *(kwargs or {}).values()])
            sources = [self.producer[id(t)] for t in tensors if id(t) in self.producer]
            if sources:
                position = len(self.calls)
                for source in sources:
                    self.calls[source].consumers.append(position)
                taken = frozenset(id(t) for t in tensors if isinstance(t, nn.Parameter))
                self.calls.append(Call(name, index, self.layers[-1], sources, taken, output))
                self.producer.update((id(t), position) for t in results)
        return output


def takes_floats(args: Iterable[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call counts: in training, BatchNorm also increments an integer counter."""
    return any(t.is_floating_point() for t in tensors_in([*args, *kwargs.values()]))


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors in `values`, including those in nested lists and tuples."""
    tensors: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, (list, tuple)):
            tensors.extend(tensors_in(value))
    return tensors


def trace(model: nn.Module, example: Tensor) -> tuple[list[Call], int]:
    """The calls of one forward pass in order, and the position of the call that returns the
    model's output (-1: none). The first entry represents the input (`function` "input").
    """
    layers = [""]
    handles = []
    for name, module in model.named_modules():
        if module is not model:
            handles.append(
                module.register_forward_pre_hook(lambda m, a, name=name: layers.append(name))
            )
            handles.append(module.register_forward_hook(lambda m, a, o: layers.pop() and None))
    recorder = _Recorder(layers)
    recorder.calls.append(Call("input", 0, "", [], frozenset(), example))
    recorder.producer[id(example)] = 0
    try:
        with torch.no_grad(), recorder:
            output = model(example)
    finally:
        for handle in handles:
            handle.remove()
    return recorder.calls, recorder.producer.get(id(output), -1)


def watch(
    model: nn.Module, inputs: Tensor, sites: Container[Site], take: Callable[[Site, Tensor], None]
) -> None:
    """Run `model` and pass the outputs at `sites` to `take(site, output)`, in call order."""
    with _Watcher(sites, take):
        model(inputs)


class _Watcher(TorchFunctionMode):
    def __init__(self, sites: Container[Site], take: Callable[[Site, Tensor], None]) -> None:
        super().__init__()
        self.sites, self.take = sites, take
        self.counts = _Counts()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        site = self.counts.site(func, args, kwargs or {})
        if site in self.sites:
            for tensor in tensors_in([output])[:1]:
                self.take(site, tensor)
        return output
