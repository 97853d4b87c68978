"""What to add to a message about a name that there is not."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, choices: Iterable[str]) -> str:
    """The choice that may have been meant, else all of them; "" where there is none."""
    known = sorted(set(choices))
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; choose from {', '.join(known)}" if known else ""


def nearest_of_many(name: str, choices: Iterable[str]) -> str:
    """The nearest choice, however far, where they are too many to list: layers, architectures."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.0)
    return f"; the nearest name is {close[0]}" if close else ""
