"""Checks of option values, with one-line errors. Every number has a range."""

from __future__ import annotations

import math
from typing import Any

from compressbench.core.errors import UserError

MOST_COUNT = 10**9  # of whatever an integer counts, where no smaller limit is given
MOST_NUMBER = 1e9  # of a number without another limit
MOST_SEED = 2**32 - 1  # numpy takes no larger one
MOST_LETTERS = 200  # of a name
SHOWN_LETTERS = 60  # of a refused value in a message


def check_integer(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise UserError unless `value` is an integer in [low, high]; bool and 4.0 are not."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value:
        allowed = f"of at least {low}" if high is None else f"in [{low}, {high}]"
        raise UserError(f"{name} must be an integer {allowed}, got {shown(value)}")
    if value > (MOST_COUNT if high is None else high):
        allowed = f"of at most {MOST_COUNT}" if high is None else f"in [{low}, {high}]"
        raise UserError(f"{name} must be an integer {allowed}, got {shown(value)}")


def check_seed(name: str, value: Any) -> None:
    """Raise UserError unless `value` is an integer that all random generators take."""
    check_integer(name, value, 0, MOST_SEED)


def check_share(name: str, value: Any) -> None:
    """Raise UserError unless `value` is a number in [0, 1)."""
    if not is_number(value) or not 0 <= value < 1:
        raise UserError(f"{name} must be a number in [0, 1), got {shown(value)}")


def check_positive(name: str, value: Any, high: float = MOST_NUMBER) -> None:
    """Raise UserError unless `value` is a number in (0, high]."""
    if not is_number(value) or not 0 < value < math.inf:
        raise UserError(f"{name} must be a number above 0, got {shown(value)}")
    _check_most(name, value, high)


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_flag(name: str, value: Any) -> None:
    """Raise UserError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise UserError(f"{name} must be true or false, got {shown(value)}")


def check_not_negative(name: str, value: Any, high: float = MOST_NUMBER) -> None:
    """Raise UserError unless `value` is a number in [0, high]."""
    if not is_number(value) or not 0 <= value < math.inf:
        raise UserError(f"{name} must be a number of at least 0, got {shown(value)}")
    _check_most(name, value, high)


def check_names(name: str, value: Any) -> None:
    """Raise UserError unless `value` is a list of names."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(n, str) and n for n in value):
        raise UserError(f"{name} must be a list of names, got {shown(value)}")


def check_label(name: str, value: Any) -> None:
    """Raise UserError unless `value` is one line of text of a sane length."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name} must be text, got {shown(value)}")
    if len(value) > MOST_LETTERS or not value.isprintable():
        raise UserError(
            f"{name} must be at most {MOST_LETTERS} printable characters, got {len(value)}: "
            f"{shown(value)}"
        )


def check_path(name: str, value: Any) -> None:
    """Raise UserError unless `value` is text that can name a file or a folder, or None."""
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise UserError(f"{name} must be a path or null, got {shown(value)}")


def shown(value: Any) -> str:
    """A refused value for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}…"


def _check_most(name: str, value: float, high: float) -> None:
    if value > high:
        raise UserError(f"{name} must be a number of at most {high:g}, got {shown(value)}")
