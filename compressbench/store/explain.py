"""Explains a cache miss: finds the most similar entry and lists the differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressbench.core.redact import redact
from compressbench.core.trees import leaves
from compressbench.store.entries import Entry, Store
from compressbench.store.keys import content_key

_SHOWN = 8
_LONGEST = 40  # longer values are not shown
_ABSENT = object()


def explain(store: Store, parts: Mapping[str, Any]) -> str:
    """Say in one line that `parts` is stored, or how the most similar entry differs.

    That is the entry of the same kind and stage with the fewest differing values; of several, the
    one used last.
    """
    key = content_key(parts)
    if store.folder(key).is_dir():
        return f"stored as {key[:12]}"
    wanted = leaves(redact(parts), lists=True)
    near = [
        (
            len(_differing(leaves(entry.parts, lists=True), wanted)),
            -entry.last_use,
            entry.key,
            entry,
        )
        for other in store.all_keys()
        if (entry := store.peek(other)) is not None and _is_alike(entry, parts)
    ]
    if not near:
        what = parts.get("stage") or parts.get("kind") or "this kind"
        return f"the store has no result of {what} yet"
    return difference(min(near)[-1], wanted)


def difference(entry: Entry, wanted: Mapping[str, Any]) -> str:
    """Describe differences as `differs from 3fa9... in: config.sparsity 0.5 → 0.6; code`.

    Values are shown as stored → wanted; long values are left out.
    """
    stored = leaves(entry.parts, lists=True)
    wanted = leaves(wanted, lists=True)
    names = _differing(stored, wanted)
    texts = [_change(name, stored, wanted) for name in names[:_SHOWN]]
    if len(names) > _SHOWN:
        texts.append(f"{len(names) - _SHOWN} more")
    return f"differs from {entry.key[:12]} in: " + ("; ".join(texts) or "credentials only")


def _is_alike(entry: Entry, parts: Mapping[str, Any]) -> bool:
    return all(entry.parts.get(name) == parts.get(name) for name in ("kind", "stage"))


def _differing(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """The names whose values differ, those of the config first."""
    names = {n for n in stored.keys() | wanted.keys() if _differs(n, stored, wanted)}
    return sorted(names, key=lambda name: (not name.startswith("config."), name))


def _differs(name: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    a, b = stored.get(name, _ABSENT), wanted.get(name, _ABSENT)
    return a != b or isinstance(a, bool) != isinstance(b, bool)


def _change(name: str, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    values = [_shown(side.get(name, _ABSENT)) for side in (stored, wanted)]
    if any(len(value) > _LONGEST for value in values):
        return name
    return f"{name} {values[0]} → {values[1]}"


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else str(value)
