"""A search space: overrides whose value is an interval, a range or a choice; parsing, sampling.

`interval(0.3,0.95)` is a float, `int(interval(2,8))` an integer, `tag(log,interval(..))` is drawn
on a log scale; `range(a,b,step)` excludes its end; `choice(..)` and `a,b` are unordered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressbench.core.errors import UserError
from compressbench.core.validation import is_number

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from optuna.distributions import BaseDistribution

Settings = dict[str, Any]
_WORD = re.compile(r"[A-Za-z_][\w.\-/]*")
_DIGITS = 12  # of a float in a setting: 0.1 + 0.2 is 0.3


@dataclass(frozen=True)
class Parameter:
    """One searched override. `texts` are the choices as Hydra reads them; empty for numbers.

    `group` says that the override picks a file of a config group, such as a recipe.
    """

    key: str
    text: str
    group: bool
    choices: tuple[Any, ...] = ()
    texts: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    integer: bool = False
    log: bool = False

    @property
    def place(self) -> str:
        """Its path in the config, such as `recipe.stages.prune.sparsity`."""
        name, _, package = self.key.lstrip("+").partition("@")
        return package or name

    def distribution(self) -> BaseDistribution:
        from optuna.distributions import (
            CategoricalDistribution,
            FloatDistribution,
            IntDistribution,
        )

        if self.choices:
            return CategoricalDistribution(self.choices)
        if self.integer:
            step = int(self.step or 1)
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=step)
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def override(self, value: Any) -> str:
        """The override that gives the parameter this value."""
        if self.choices:
            return f"{self.key}={self.texts[self.choices.index(value)]}"
        return f"{self.key}={self.rounded(value)!r}"

    def rounded(self, value: Any) -> Any:
        if self.choices:
            return value
        return int(value) if self.integer else round(float(value), _DIGITS)

    @property
    def middle(self) -> Any:
        """The middle of an interval or a range, on its own scale."""
        if self.log:
            middle = math.sqrt(self.low * self.high)
        else:
            step = self.step or (1 if self.integer else None)
            half = (self.high - self.low) / 2
            middle = self.low + (half if step is None else step * math.floor(half / step + 1e-9))
        return self.rounded(middle)

    def values(self) -> list[Any]:
        """All values, for a grid. Raises UserError for an interval of floats."""
        if self.choices:
            return list(self.choices)
        step = self.step or (1 if self.integer else None)
        if step is None or self.log:
            raise UserError(f"{self.key}={self.text}: a grid needs choices or a range")
        count = math.floor((self.high - self.low) / step + 1e-9) + 1
        return [self.rounded(self.low + i * step) for i in range(count)]

    def holds(self, value: Any) -> bool:
        if self.choices:
            return any(value == c and type(value) is type(c) for c in self.choices)
        if not is_number(value) or not self.low <= value <= self.high:
            return False
        return not self.integer or value == int(value)


def parse(arguments: Iterable[str], folders: Sequence[Path]) -> tuple[list[Parameter], list[str]]:
    """(searched, fixed) overrides. Raises UserError for values that cannot be sampled."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    searched, fixed = [], []
    for argument in arguments:
        try:
            override = OverridesParser.create().parse_override(argument)
        except HydraException as error:
            raise UserError(f"{argument}: {str(error).partition(chr(10))[0]}") from None
        if override.is_sweep_override():
            searched.append(_parameter(override, argument, folders))
        else:
            fixed.append(argument)
    return searched, fixed


def _parameter(override: Override, argument: str, folders: Sequence[Path]) -> Parameter:
    key, text = argument.partition("=")[0], argument.partition("=")[2]
    name = override.key_or_group
    group = override.package is not None or any((folder / name).is_dir() for folder in folders)
    if override.is_interval_sweep():
        return _interval(override, key, text, group)
    from hydra.core.override_parser.types import RangeSweep, Transformer

    value = override.value()
    plain = list(override.sweep_iterator(transformer=Transformer.identity))
    encoded = override.sweep_iterator(transformer=Transformer.encode)
    texts = [_quoted(p) if isinstance(p, str) else str(t).lower() if isinstance(p, bool) else str(t)
             for p, t in zip(plain, encoded, strict=True)]  # fmt: skip
    if not plain:
        raise UserError(f"{argument} has no value to choose from")
    if isinstance(value, RangeSweep) and not value.shuffle and len(plain) > 1:
        return _range(plain, key, text)
    choices = tuple(p if isinstance(p, (bool, int, float, str)) else t
                    for p, t in zip(plain, texts, strict=True))  # fmt: skip
    if len(set(texts)) < len(texts):
        raise UserError(f"{argument} names the same choice twice")
    return Parameter(key, text, group, choices, tuple(texts))


def _quoted(text: str) -> str:
    """Text as an override, quoted where Hydra would parse something else."""
    if _WORD.fullmatch(text) and text.lower() not in ("true", "false", "null", "inf", "nan"):
        return text
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _interval(override: Override, key: str, text: str, group: bool) -> Parameter:
    from hydra.core.override_parser.types import IntervalSweep

    value = override.value()
    assert isinstance(value, IntervalSweep)
    low, high, log = value.start, value.end, "log" in value.tags
    assert low is not None
    assert high is not None
    if group:
        raise UserError(f"{key}={text}: {key} names an option, so it needs choice(...)")
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{key}={text} is an empty interval: its start must be below its end")
    if log and low <= 0:
        raise UserError(f"{key}={text}: on a log scale the interval must start above 0")
    integer = isinstance(low, int) and isinstance(high, int)
    return Parameter(key, text, group, low=low, high=high, integer=integer, log=log)


def _range(values: Sequence[Any], key: str, text: str) -> Parameter:
    low, high = min(values), max(values)
    integer = all(isinstance(v, int) for v in values)
    step = abs(values[1] - values[0])
    return Parameter(key, text, False, low=low, high=high, integer=integer,
                     step=step if integer else round(step, _DIGITS))  # fmt: skip


def joined(
    named: Mapping[str, Any], arguments: Iterable[str], folders: Sequence[Path]
) -> tuple[list[Parameter], list[str]]:
    """(searched, fixed): the space of a YAML, with the command line on top.

    A fixed value on the command line takes its parameter out of the space.
    """
    searched, fixed = parse(arguments, folders)
    by_place = {p.place: p for p in searched}
    fixed_places = {a.partition("=")[0].lstrip("+").rpartition("@")[2] for a in fixed}
    lines = [f"{key}={text}" for key, text in named.items()]
    of_yaml, constant = parse(lines, folders)
    if constant:
        raise UserError(f"search.space: {constant[0]} is one value; use interval, range or choice")
    rest = [p for p in of_yaml if p.place not in by_place and p.place not in fixed_places]
    return [*rest, *searched], fixed


def levels(space: Sequence[Parameter]) -> list[list[Parameter]]:
    """Options of the top level, then options inside of them, then their numbers and flags."""
    top = [p for p in space if p.group and "@" not in p.key]
    inner = [p for p in space if p.group and "@" in p.key]
    return [top, inner, [p for p in space if not p.group]]


def exists(parameter: Parameter, config: Mapping[str, Any]) -> bool:
    """Whether a composed config has the path of a parameter (for `+` and groups: its parent)."""
    parts = parameter.place.split(".")
    added = parameter.key.startswith("+") or parameter.group
    place: Any = config
    for part in parts[:-1] if added else parts:
        inside = list(enumerate(place)) if isinstance(place, list) else []
        found = dict(place) if isinstance(place, Mapping) else {str(i): v for i, v in inside}
        if part not in found:
            return False
        place = found[part]
    return isinstance(place, Mapping) if added else True


def draw(
    space: Sequence[Parameter],
    configs: Callable[[tuple[str, ...]], Mapping[str, Any]],
    choose: Callable[[Parameter], Any],
) -> Settings:
    """Settings of one trial: only what the options that were chosen before it have.

    `configs` composes overrides of options; `choose` gives a parameter's value.
    """
    chosen: Settings = {}
    options: tuple[str, ...] = ()
    for level in levels(space):
        config = configs(options) if level else {}
        for parameter in level:
            if exists(parameter, config):
                value = parameter.rounded(choose(parameter))
                chosen[parameter.key] = value
                if parameter.group:
                    options = (*options, parameter.override(value))
    return chosen


def overrides(space: Sequence[Parameter], settings: Mapping[str, Any]) -> list[str]:
    """The overrides of a trial, options first."""
    return [p.override(settings[p.key]) for level in levels(space) for p in level
            if p.key in settings]  # fmt: skip


def every(
    space: Sequence[Parameter], configs: Callable[[tuple[str, ...]], Mapping[str, Any]]
) -> Iterator[Settings]:
    """All settings of a grid, each once."""
    pending: list[Settings] = [{}]
    while pending:
        given = pending.pop()
        asked: list[Parameter] = []

        def choose(p: Parameter, given: Settings = given, asked: list[Parameter] = asked) -> Any:
            if p.key not in given:
                asked.append(p)
            return given.get(p.key, p.values()[0])

        found = draw(space, configs, choose)
        if not asked:
            yield found
        else:  # branch on the first that is still open
            pending += [{**given, asked[0].key: v} for v in reversed(asked[0].values())]
