"""Computes content keys: SHA-256 over canonical JSON."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

import rfc8785

from compressbench.core.errors import UserError

_KEY = re.compile(r"[0-9a-f]{64}")
_LARGEST_INTEGER = 2**53 - 1  # larger integers are not exact as JSON numbers


def canonical(value: Any) -> bytes:
    """Canonical JSON (RFC 8785) of nested mappings, lists, tuples, strings and numbers.

    Tuples are written as lists; 1.0 and 1 are the same number. Raises UserError for a number that
    JSON cannot represent exactly, TypeError for any other type (for a Path, pass its digest).
    """
    return rfc8785.dumps(_plain(value, ""))


def content_key(parts: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of `parts`, 64 hex digits."""
    return hashlib.sha256(canonical(parts)).hexdigest()


def is_key(text: str) -> bool:
    """Whether `text` has the form of a content key."""
    return _KEY.fullmatch(text) is not None


def _plain(value: Any, where: str) -> Any:
    """Convert `value` to the types that rfc8785 accepts; `where` is its dotted name for errors."""
    if isinstance(value, Mapping):
        return {_name(key, where): _plain(v, f"{where}.{key}") for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v, f"{where}.{index}") for index, v in enumerate(value)]
    _check_leaf(value, where.lstrip(".") or "the value")
    return value


def _name(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{where.lstrip('.')}: the key {key!r} is not a string")
    _check_leaf(key, where.lstrip(".") or "the value")
    return key


def _check_leaf(value: Any, where: str) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        if not value.isascii() and value.encode(errors="replace").decode() != value:
            raise UserError(f"{where}: {value!r} is not valid Unicode text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{where} must be a finite number, got {value}")
    elif isinstance(value, int):
        if abs(value) > _LARGEST_INTEGER:
            raise UserError(f"{where} must be an integer below 2**53, got {value}")
    else:
        raise TypeError(f"{where}: {type(value).__name__} has no canonical JSON: {value!r}")
