"""The settings that are tried first: known ones, and the two ends of the space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

from compressbench.core.errors import UserError
from compressbench.core.nearest import nearest
from compressbench.search.directions import direction, least_to_most
from compressbench.search.space import Parameter, Settings, draw, every

Configs = Callable[[tuple[str, ...]], Mapping[str, Any]]
MOST_GRID = 100_000


def known(enqueue: Sequence[Mapping[str, Any]], space: Sequence[Parameter]) -> list[Settings]:
    """The `search.enqueue` settings, checked against the space."""
    by_key = {p.key: p for p in space}
    for position, settings in enumerate(enqueue):
        where = f"search.enqueue[{position}]"
        if not isinstance(settings, Mapping):
            raise UserError(f"{where} must be settings such as {{KEY: VALUE}}, got {settings!r}")
        for key, value in settings.items():
            if key not in by_key:
                raise UserError(f"{where}.{key} is not in the space{nearest(str(key), by_key)}")
            if not by_key[key].holds(value):
                raise UserError(f"{where}.{key}={value!r} is not in {by_key[key].text}")
    return [dict(s) for s in enqueue]


def corners(space: Sequence[Parameter], configs: Configs) -> list[Settings]:
    """The least and the most compressed settings, for every recipe of the space."""
    recipes = [p for p in space if p.place == "recipe" and p.choices]
    options = recipes[0].choices if recipes else (None,)
    found = []
    for most in (False, True):
        for recipe in options:

            def choose(p: Parameter, recipe: Any = recipe, most: bool = most) -> Any:
                return recipe if p.place == "recipe" else end(p, most)

            found.append(draw(space, configs, choose))
    return found


def unique(settings: Sequence[Settings]) -> list[Settings]:
    return [s for i, s in enumerate(settings) if s not in settings[:i]]


def end(parameter: Parameter, most: bool) -> Any:
    """The value that compresses most, or least.

    For an option that does neither, the first choice, or the middle of an interval: an extreme
    learning rate, for instance, would spoil the trial.
    """
    if parameter.choices:
        ordered = least_to_most(parameter.place, parameter.choices) or parameter.choices[:1]
        return ordered[-1 if most else 0]
    sign = direction(parameter.place)
    if not sign:
        return parameter.middle
    return parameter.high if most == (sign > 0) else parameter.low


def grid(space: Sequence[Parameter], configs: Configs, seed: int) -> list[Settings]:
    """Every combination, in an order that the seed gives, so that a part of them covers all."""
    for parameter in space:
        parameter.values()
    found = []
    for settings in every(space, configs):
        found.append(settings)
        if len(found) > MOST_GRID:
            raise UserError(f"search.sampler: a grid of more than {MOST_GRID:,} trials")
    Random(seed).shuffle(found)
    return found
