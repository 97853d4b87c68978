"""Suggestions for error messages about unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, choices: Iterable[str]) -> str:
    """A suffix that names the closest choice, or all if none is close; "" without choices."""
    known = sorted(set(choices))
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; choose from {', '.join(known)}" if known else ""


def nearest_of_many(name: str, choices: Iterable[str]) -> str:
    """A suffix that names the closest choice, for choices that are too many to list."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.0)
    return f"; the nearest name is {close[0]}" if close else ""
