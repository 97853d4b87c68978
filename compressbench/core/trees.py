"""Flattens nested settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def leaves(tree: Any, where: str = "", lists: bool = False) -> dict[str, Any]:
    """Dotted name -> value: `{"prune": {"sparsity": 0.5}}` becomes `{"prune.sparsity": 0.5}`.

    `lists` also flattens lists and tuples, whose elements are named by position. Empty containers
    are values. `where` is a prefix of all names.
    """
    items: Iterable[tuple[Any, Any]]
    if isinstance(tree, Mapping) and tree:
        items = tree.items()
    elif lists and isinstance(tree, (list, tuple)) and tree:
        items = enumerate(tree)
    else:
        return {where: tree}
    return {
        name: leaf
        for key, value in items
        for name, leaf in leaves(value, f"{where}.{key}" if where else str(key), lists).items()
    }
