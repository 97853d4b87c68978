"""Loads checkpoints: safetensors, or torch files without executing code in them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compressbench.core.errors import UserError
from compressbench.core.input_files import input_file

TORCH_SUFFIXES = (".pt", ".pth", ".bin")
KEYS = ("model_state_dict", "model", "net")  # of the weights, beside other entries of a file
PREFIXES = ("module.", "model.", "_orig_mod.")  # of DataParallel, wrappers and torch.compile
WRAPPED = "network."  # prefix in the wrappers around models of other libraries
_PARAMETRIZED = "parametrizations"
_DEPRECATED = {
    "original0": "_g",
    "original1": "_v",
    "original": "_orig",
    "0._u": "_u",
    "0._v": "_v",
}
SHOWN = 3  # names listed in a message


def load_checkpoint_(model: nn.Module, path: str | Path) -> None:
    """Load all tensors of the file `path` into `model`, or none.

    The file is `.safetensors`, or `.pt`, `.pth` or `.bin` with plain tensors, which torch's
    weights-only reader loads without executing code. The tensors may be under a key, such as
    `state_dict` or `model`, and all names may have the prefix `module.` or `model.`. Raises
    UserError unless names and shapes match the model and all values are finite.
    """
    path = input_file(path, "checkpoint")
    state = _renamed(_without_prefix(_tensors(_read(path), path), model), model)
    _check(state, model, path)
    model.load_state_dict(state)


def _read(path: Path) -> Mapping[str, Any]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    suffixes = ", ".join((".safetensors", *TORCH_SUFFIXES))
    raise UserError(f"checkpoint {path}: the name must end in {suffixes}")


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {path}: not a valid safetensors file: {error}") from error


def _read_torch(path: Path) -> Mapping[str, Any]:
    from pickle import UnpicklingError

    try:
        with warnings.catch_warnings(action="ignore"):  # hide hints on pickle
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"checkpoint {path}: contains objects other than tensors, which could run code; save "
            "only model.state_dict(), or a safetensors file"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"checkpoint {path}: not a valid torch file: {reason}") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path}: must contain a dict, got {type(content).__name__}")
    return content


def _tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    state = content.get(_key(content), content)
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"checkpoint {path}: contains no tensors")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"checkpoint {path}: {name!r} must be a tensor, got {type(value).__name__}"
            )
    return {str(name): value for name, value in state.items()}


def _key(content: Mapping[str, Any]) -> str:
    """The key of the weights in a file that has more than them: the first of `KEYS`, or else the
    only one that has tensors; "" if none has.
    """
    if "state_dict" in content:
        return "state_dict"
    held = [
        key
        for key, value in content.items()
        if isinstance(value, Mapping)
        and value
        and all(isinstance(tensor, Tensor) for tensor in value.values())
    ]
    known = [key for key in KEYS if key in held]
    return known[0] if known else held[0] if len(held) == 1 else ""


def _without_prefix(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Remove a prefix that all names have, unless the model's names have it too; add the prefix of
    a wrapper.
    """
    expected = list(model.state_dict())
    if any(WRAPPED + name in expected for name in state):
        return {WRAPPED + name: tensor for name, tensor in state.items()}
    for prefix in PREFIXES:
        shared = all(name.startswith(prefix) for name in state)
        if shared and not all(name.startswith(prefix) for name in expected):
            shorter = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
            return _without_prefix(shorter, model)
    return state


def _renamed(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors of torch's deprecated weight_norm and spectral_norm under the names that the
    parametrizations of a model have for them.
    """
    renamed = dict(state)
    for name in model.state_dict():
        layer, _, rest = name.rpartition(f"{_PARAMETRIZED}.")
        tensor, _, part = rest.partition(".")
        old = f"{layer}{tensor}{_DEPRECATED.get(part, '')}"
        if layer and part in _DEPRECATED and old in state and name not in state:
            renamed[name] = renamed.pop(old)
    return renamed


def _check(state: Mapping[str, Tensor], model: nn.Module, path: Path) -> None:
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        parts = [_some("missing", missing), _some("not in the model", unexpected)]
        raise UserError(f"checkpoint {path}: {'; '.join(part for part in parts if part)}")
    other = [
        f"{name} is {list(state[name].shape)}, the model's {list(tensor.shape)}"
        for name, tensor in expected.items()
        if state[name].shape != tensor.shape
    ]
    if other:
        raise UserError(f"checkpoint {path}: {_some('shapes differ', other)}")
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UserError(f"checkpoint {path}: {name} holds NaN or infinity")


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}: {', '.join(names[:SHOWN])}{more}"
