"""Checks of option values, with one-line errors."""

from __future__ import annotations

import math
from typing import Any

from compressbench.core.errors import UserError


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise UserError unless `value` is an integer in [low, high]; bool and 4.0 are not."""
    fits = isinstance(value, int) and not isinstance(value, bool) and value >= low
    if not fits or (high is not None and value > high):
        allowed = f"of at least {low}" if high is None else f"in [{low}, {high}]"
        raise UserError(f"{name} must be an integer {allowed}, got {value!r}")


def check_share(name: str, value: Any) -> None:
    """Raise UserError unless `value` is a number in [0, 1)."""
    if not is_number(value) or not 0 <= value < 1:
        raise UserError(f"{name} must be a number in [0, 1), got {value!r}")


def check_positive(name: str, value: Any) -> None:
    """Raise UserError unless `value` is a finite number above 0."""
    if not is_number(value) or not 0 < value < math.inf:
        raise UserError(f"{name} must be a number above 0, got {value!r}")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_flag(name: str, value: Any) -> None:
    """Raise UserError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise UserError(f"{name} must be true or false, got {value!r}")


def check_not_negative(name: str, value: Any) -> None:
    """Raise UserError unless `value` is a finite number of at least 0."""
    if not is_number(value) or not 0 <= value < math.inf:
        raise UserError(f"{name} must be a number of at least 0, got {value!r}")


def check_names(name: str, value: Any) -> None:
    """Raise UserError unless `value` is a list of names."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(n, str) and n for n in value):
        raise UserError(f"{name} must be a list of names, got {value!r}")
