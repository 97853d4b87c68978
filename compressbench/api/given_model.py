"""A module that the caller holds: a config that names it, a copy, the source of its classes."""

from __future__ import annotations

import ast
import inspect
import linecache
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from compressbench.api.description import Description, module_sha256, state_sha256
from compressbench.core.errors import UserError
from compressbench.models.in_hand import TARGET
from compressbench.models.plain import plain, release_hooked_, unwrapped


@dataclass(frozen=True)
class GivenModel:
    """`config` names the module for the engine, `module` is the copy that it stands for."""

    config: Mapping[str, Any]
    module: nn.Module

    @property
    def live(self) -> dict[str, nn.Module]:
        return {self.config["state_sha256"]: self.module}


def given_model(module: nn.Module, trained: bool) -> GivenModel:
    """Copy a module to the CPU and describe it. Raises UserError for one that cannot be taken."""
    module = unwrapped(module)
    name = type(module).__name__
    if any(map(is_lazy, [*module.parameters(), *module.buffers()])):
        raise UserError(f"model: {name} has lazy parameters: run it on one batch first")
    release_hooked_(module)
    try:
        copy = plain(deepcopy(module)).cpu().eval()
    except UserError as error:
        raise UserError(f"model: {error}") from None
    except (RuntimeError, TypeError, NotImplementedError) as error:  # locks, meta tensors, hooks
        first = str(error).partition("\n")[0]
        raise UserError(f"model: {name} cannot be copied to the CPU: {first}") from error
    _check_state(copy)
    config = {
        "_target_": TARGET,
        "name": name,
        "module_sha256": module_sha256(copy),
        "state_sha256": state_sha256(copy),
        "trained": trained,
    }
    return GivenModel(config, copy)


def _check_state(module: nn.Module) -> None:
    for name, value in module.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"model: {name} of its state_dict must be a tensor, got {type(value).__name__}"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"model: {name} holds NaN or infinity")


def source_text(module: nn.Module) -> str:
    """The source of the program's own classes that a module is made of; a comment where it has
    none.
    """
    description = Description(module)
    description.of(module)
    own = [kind for kind in description.classes if issubclass(kind, nn.Module)]
    texts = [f"# {kind.__module__}.{kind.__qualname__}\n{_source(kind)}\n" for kind in own]
    return "\n\n".join(texts) or f"# {type(module).__name__} is made of installed classes alone\n"


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return next(_cell_sources(kind), "# its source is not known")


def _cell_sources(kind: type) -> Iterator[str]:
    """The text of a class of a notebook, which has no file: found through its functions."""
    for value in vars(kind).values():
        code = getattr(value, "__code__", None)
        if code is None:
            continue
        text = "".join(linecache.getlines(code.co_filename))
        try:
            tree = ast.parse(text)
        except SyntaxError:  # a cell with commands of the notebook's own
            continue
        for node in ast.walk(tree):
            if not isinstance(node, ast.ClassDef) or node.name != kind.__name__:
                continue
            if node.lineno <= code.co_firstlineno <= (node.end_lineno or 0):
                yield ast.get_source_segment(text, node) or ""
