"""Rows for a program: a pandas DataFrame where pandas is installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any


def as_table(rows: Sequence[dict[str, Any]]) -> Any:
    """`rows` as a DataFrame, one row each; the list itself where there is no pandas."""
    if find_spec("pandas") is None:
        return list(rows)
    import pandas

    return pandas.DataFrame(list(rows))
