"""Loads checkpoints: safetensors, or torch files without executing code in them."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
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
_MISREAD = (  # what readers raise for a damaged file
    RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError,
    ArithmeticError, AssertionError, MemoryError, struct.error,
)  # fmt: skip
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
        tensors = load_file(path)
        _refuse_duplicates(path)
    except (SafetensorError, *_MISREAD) as error:
        raise UserError(
            f"checkpoint {path}: not a valid safetensors file: {_reason(error)}"
        ) from error
    return tensors


def _refuse_duplicates(path: Path) -> None:
    """Raise ValueError if a name stands twice in the header: the last would win without a word."""
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    json.loads(header, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(name for name, _ in pairs if [n for n, _ in pairs].count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in its header")
    return found


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        with warnings.catch_warnings(action="ignore"):  # hide hints on pickle
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise UserError(
            f"checkpoint {path}: contains objects other than tensors, which could run code; save "
            "only model.state_dict(), or a safetensors file"
        ) from error
    except _MISREAD as error:
        raise UserError(f"checkpoint {path}: not a valid torch file: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path}: must contain a dict, got {type(content).__name__}")
    return content


def _reason(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _tensors(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    state = content.get(_key(content), content)
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"checkpoint {path}: contains no tensors")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(
                f"checkpoint {path}: {name!r} must be a tensor, got {type(value).__name__}"
            )
        if kind := _odd_kind(value):
            raise UserError(
                f"checkpoint {path}: {name!r} is a {kind} tensor; save dense tensors of plain "
                "numbers"
            )
    return {str(name): value for name, value in state.items()}


def _odd_kind(tensor: Tensor) -> str:
    """Why a tensor has no dense real values to copy; "" if it has."""
    kinds = {
        "nested": tensor.is_nested,
        "sparse": tensor.layout is not torch.strided,
        "meta": tensor.is_meta,
        "quantized": tensor.is_quantized,
        "complex": tensor.is_complex(),
    }
    return next((kind for kind, true in kinds.items() if true), "")


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
    for name, tensor in expected.items():
        _check_values(name, state[name], tensor, path)


def _check_values(name: str, given: Tensor, expected: Tensor, path: Path) -> None:
    """Raise UserError unless the model's tensor can hold the values that are given."""
    if given.is_floating_point() and not bool(torch.isfinite(given.double()).all()):
        raise UserError(f"checkpoint {path}: {name} holds NaN or infinity")
    kinds = [tensor.is_floating_point() for tensor in (given, expected)]
    cast = given.to(expected.dtype)
    rounded = kinds == [True, True]
    lost = not torch.isfinite(cast).all() if rounded else not cast.double().equal(given.double())
    if kinds == [False, True] or bool(lost):
        raise UserError(
            f"checkpoint {path}: {name} holds {_dtype(given)}, which does not fit the model's "
            f"{_dtype(expected)}"
        )


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _some(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    shown = ", ".join(name if name.isprintable() else repr(name) for name in names[:SHOWN])
    return f"{what}: {shown}{more}"
