"""Refuses models whose parameters are not registered, or that cannot be copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressbench.core.calls import tensors_in
from compressbench.core.errors import UserError


def check_copy(model: nn.Module, where: str) -> None:
    """Raise UserError for a model that cannot be copied."""
    try:
        deepcopy(model)
    except Exception as error:  # an attribute may be anything
        line = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{where} cannot be copied{_culprit(model)}: {line}; make it where it is used, or give "
            f"{type(model).__name__} a __deepcopy__"
        ) from error


def _culprit(model: nn.Module) -> str:
    """The first attribute of a module that cannot be copied, for a message."""
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("_parameters", "_buffers", "_modules"):
                continue
            try:
                deepcopy(value)
            except Exception:  # noqa: BLE001 - an attribute may be anything
                return f" for its attribute {f'{name}.{attribute}'.lstrip('.')}"
    return ""


@contextmanager
def registered(model: nn.Module, where: str) -> Iterator[None]:
    """Raise UserError if what runs within the block makes parameters of `model`, or computes with
    parameters that it does not register.
    """
    before = [name for name, _ in model.named_parameters()]
    watch = _Watch({id(p) for p in model.parameters()})
    with torch.compiler.set_stance("force_eager"), watch:
        yield
    made = [name for name, _ in model.named_parameters() if name not in before]
    if made:
        raise UserError(
            f"{where}: {made[0]} is made in the first forward pass: make parameters and layers in "
            "the constructor"
        )
    if watch.unknown is not None:
        unknown = watch.unknown
        found = next((_path(m, n, unknown) for n, m in model.named_modules()
                      if _path(m, n, unknown)), f"one of shape {list(unknown.shape)}")  # fmt: skip
        raise UserError(
            f"{where}: its forward computes with a parameter that the model does not register "
            f"({found}): keep layers in nn.ModuleList or nn.ModuleDict, parameters in "
            "nn.ParameterList"
        )


class _Watch(TorchFunctionMode):
    """Finds the first parameter among the arguments of calls that is not in `known` (ids)."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known
        self.unknown: Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        for tensor in tensors_in([*args, *(kwargs or {}).values()]):
            new = isinstance(tensor, nn.Parameter) and id(tensor) not in self.known
            if new and self.unknown is None:
                self.unknown = tensor
        return func(*args, **(kwargs or {}))


def _path(value: Any, name: str, wanted: Tensor) -> str:
    """Where `value`, called `name`, holds the tensor `wanted` in lists and dicts; "" if nowhere."""
    parts: Iterator[tuple[str, Any]] = iter(())
    if value is wanted:
        return name
    if isinstance(value, nn.Module):
        parts = ((f"{name}.{k}".lstrip("."), v) for k, v in _own(value))
    elif isinstance(value, Mapping):
        parts = ((f"{name}[{k!r}]", v) for k, v in value.items())
    elif isinstance(value, (list, tuple)):
        parts = ((f"{name}[{i}]", v) for i, v in enumerate(value))
    return next((found for n, v in parts if (found := _path(v, n, wanted))), "")


def _own(module: nn.Module) -> list[tuple[str, Any]]:
    """What a module holds, by name."""
    plain = [(k, v) for k, v in vars(module).items() if not k.startswith("_")]
    return [*plain, *module._modules.items(), *module._parameters.items()]
