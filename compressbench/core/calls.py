"""Traces the torch functions that a model calls, with their producers and consumers."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressbench.core.call_stack import CallStack, Site

UNCOUNTED = -1  # index of a call that takes no floats


@dataclass
class Call:
    """One traced call; `sources` and `consumers` are positions of other calls."""

    site: Site
    layer: str
    sources: list[int]
    parameters: frozenset[int]  # ids of the parameters among its arguments
    output: Any  # kept alive so that ids stay unique
    constant: bool = False  # whether an argument is a number or a tensor that no input determines
    consumers: list[int] = field(default_factory=list)

    @property
    def function(self) -> str:
        return self.site.function


def function_name(function: Callable[..., Any]) -> str:
    """The name of a function; in-place and operator forms share one (`__iadd__` -> "add")."""
    name = getattr(function, "__name__", "").strip("_")
    return name[1:] if name in {"iadd", "imul", "isub", "idiv", "itruediv"} else name


class _Recorder(TorchFunctionMode):
    def __init__(self, stack: CallStack, example: Tensor) -> None:
        super().__init__()
        self.calls = [Call(Site("", "input", 0), "", [], frozenset(), example)]
        self.producer = {id(example): 0}
        self.stack = stack

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        given = [*args, *(kwargs or {}).values()]
        name = function_name(func)
        counts = takes_floats(given, {})
        site = self.stack.site(name) if counts else Site("", name, UNCOUNTED)
        results = [t for t in tensors_in([output]) if t.is_floating_point()]
        tensors = tensors_in(given)
        sources = [self.producer[id(t)] for t in tensors if id(t) in self.producer]
        if results and sources:
            position = len(self.calls)
            for source in sources:
                self.calls[source].consumers.append(position)
            taken = frozenset(id(t) for t in tensors if isinstance(t, nn.Parameter))
            constant = len(sources) < len(tensors) or any(type(v) in (int, float) for v in given)
            call = Call(site, self.stack.layer, sources, taken, output, constant)
            self.calls.append(call)
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
    with CallStack(model) as stack:
        recorder = _Recorder(stack, example)
        with torch.no_grad(), recorder:
            output = model(example)
    return recorder.calls, recorder.producer.get(id(output), -1)


def watch(
    model: nn.Module, inputs: Tensor, sites: Container[Site], take: Callable[[Site, Tensor], None]
) -> None:
    """Run `model` and pass the outputs at `sites` to `take(site, output)`, in call order."""
    with CallStack(model) as stack, _Watcher(stack, sites, take):
        model(inputs)


class _Watcher(TorchFunctionMode):
    def __init__(
        self, stack: CallStack, sites: Container[Site], take: Callable[[Site, Tensor], None]
    ) -> None:
        super().__init__()
        self.stack, self.sites, self.take = stack, sites, take

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if not takes_floats(args, kwargs or {}):
            return output
        site = self.stack.site(function_name(func))
        if site in self.sites:
            for tensor in tensors_in([output])[:1]:
                self.take(site, tensor)
        return output
