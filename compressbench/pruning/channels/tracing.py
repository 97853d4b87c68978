"""Runs a model, and follows the labels of its channels through the torch functions it calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.overrides import TorchFunctionMode

from compressbench.core.calls import function_name, tensors_in
from compressbench.pruning.channels.rules import RULES
from compressbench.pruning.channels.rules_elementwise import unknown
from compressbench.pruning.channels.shadows import INPUT, Call, Place, Shadows

# what users' code raises on other sizes, and torch on calls of a form that a rule does not know
REFUSALS = (AssertionError, AttributeError, ArithmeticError, LookupError, NotImplementedError,
            RuntimeError, TypeError, ValueError)  # fmt: skip
OUTPUT = "its channels are the model's outputs"


class _Follower(TorchFunctionMode):
    """Applies the rule of each function to the shadows of its arguments."""

    def __init__(self, shadows: Shadows, running: list[tuple[str, nn.Module]]) -> None:
        super().__init__()
        self.shadows, self.running = shadows, running

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = _name(func)
        if name == "setitem" or tensors_in([output]):
            owner, module = self.running[-1]
            call = Call(name, func, args, kwargs or {}, output, owner, module)
            self._follow(call)
        elif _reads(name):
            self.shadows.fix(
                (t for t in tensors_in(args) if self.shadows.layer_of(t)), f"read by {name}"
            )
        return output

    def _follow(self, call: Call) -> None:
        rule = RULES.get(call.name, unknown)
        if call.name == "unfold" and isinstance(call.output, Tensor) and call.owner is not None:
            rule = RULES["tensor_unfold" if _of_tensor(call) else "unfold"]
        try:
            rule(self.shadows, call)
        except REFUSALS:
            unknown(self.shadows, call)


def _of_tensor(call: Call) -> bool:
    """Whether `unfold` is Tensor.unfold (a view), not torch.nn.functional.unfold (im2col)."""
    return len(call.args) == 4 or "dimension" in call.kwargs


def _reads(name: str) -> bool:
    return name in ("numpy", "item", "tolist")


def _name(function: Callable[..., Any]) -> str:
    """The function's name; for an attribute of tensors, the attribute's."""
    if getattr(function, "__name__", "") == "__get__":
        return str(getattr(getattr(function, "__self__", None), "__name__", ""))
    return function_name(function)


def trace(model: nn.Module, example: Tensor, choices: Mapping[Place, int]) -> Shadows:
    """The labels of a model after one pass in eval mode, and one in training mode if that runs.

    The model must be a copy: a pass in training mode changes statistics. Random numbers are those
    of a fixed seed, and the global generator is left alone.
    """
    shadows = Shadows(model, choices)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), plainly():
        _pass(shadows, model.eval(), example)
        with suppress(*REFUSALS):  # training as such may fail, whatever the channels are
            _pass(shadows, model.train(), example)
        model.eval()
    return shadows


def _pass(shadows: Shadows, model: nn.Module, example: Tensor) -> None:
    torch.default_generator.manual_seed(0)
    shadows.begin()
    shadows.constant(example, shadows.labels.fixed(INPUT))
    running: list[tuple[str, nn.Module]] = [("", model)]
    with _names(model, running), _Follower(shadows, running):
        output = model(example)
    shadows.fix(all_tensors(output), OUTPUT)


@contextmanager
def _names(model: nn.Module, running: list[tuple[str, nn.Module]]) -> Iterator[None]:
    """Keeps the modules that are running in `running`, the innermost last."""
    handles = []
    for name, module in model.named_modules():
        if module is not model and not isinstance(module, torch.jit.ScriptModule):
            handles += [
                module.register_forward_pre_hook(lambda m, a, n=name: running.append((n, m))),
                module.register_forward_hook(lambda m, a, o: running.pop() and None),
            ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def plainly() -> Iterator[None]:
    """Runs compiled models as they were written, and encoder layers of torch without the fused
    kernels that hide what they call.
    """
    fast = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        mha.set_fastpath_enabled(fast)


def all_tensors(value: Any) -> list[Tensor]:
    """The tensors in an output, in whatever lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for part in value.values() for t in all_tensors(part)]
    if isinstance(value, (list, tuple)):
        return [t for part in value for t in all_tensors(part)]
    if is_dataclass(value):
        return [t for f in fields(value) for t in all_tensors(getattr(value, f.name))]
    return []
