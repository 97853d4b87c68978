"""Identifies a sweep by its space, objectives, constraints, recipe, model and dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from compressbench.core.errors import UserError
from compressbench.results.sweep import Constraint, Objective
from compressbench.search.space import Parameter
from compressbench.tracking.records import flatten

_SECTIONS = ("recipe", "model", "dataset", "trainer", "seed", "opset")
_MOST_SHOWN = 4
CONTENTS = "dataset contents"  # no part of the name of a sweep; absent in older ones


def fingerprint(
    space: Sequence[Parameter],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    configs: Mapping[str, Mapping[str, Any]],
) -> dict[str, str]:
    """Flat name -> text. `configs` are the composed configs without numbers of the space, by the
    options that the space may choose. Parameters of the space count by their range alone.
    """
    searched = {p.place for p in space if not p.group}
    found = {f"search.space.{p.key.lstrip('+')}": p.text for p in space}
    found["search.objectives"] = ", ".join(f"{o.direction} {o.name}" for o in objectives)
    found["search.constraints"] = ", ".join(
        f"{c.name} {'>=' if c.at_least else '<='} {c.bound:g}" for c in constraints
    )
    for options, config in configs.items():
        flat = flatten({name: config[name] for name in _SECTIONS})
        for name, text in flat.items():
            if not any(name == p or name.startswith(f"{p}.") for p in searched):
                found[f"{options} {name}".strip()] = text
    return found


def digest(print_: Mapping[str, str]) -> str:
    text = json.dumps(print_, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def check_same(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise UserError that lists the differences between two fingerprints."""
    changed = [
        k
        for k in before.keys() | now.keys()
        if before.get(k) != now.get(k) and not (k == CONTENTS and k not in before)
    ]
    changed.sort(key=lambda k: (not k.startswith("search."), k))
    if not changed:
        return
    shown = [
        f"{k.strip()} {before.get(k, 'absent') or 'none'} → {now.get(k, 'absent') or 'none'}"
        for k in changed[:_MOST_SHOWN]
    ]
    more = f" and {len(changed) - _MOST_SHOWN} more" if len(changed) > _MOST_SHOWN else ""
    raise UserError(
        f"search.name={name} is already another sweep, which differs in: {'; '.join(shown)}{more}; "
        "give this one another search.name"
    )
