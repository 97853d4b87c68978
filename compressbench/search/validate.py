"""Checks a search space before anything runs: its paths in the config, its extreme values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from compressbench.config.instantiate import instantiate
from compressbench.core.errors import LimitError, UserError
from compressbench.core.types import Data
from compressbench.results.terminal import make_console, warn
from compressbench.search.initial_trials import Configs, unique
from compressbench.search.space import Parameter, Settings, draw, exists, overrides
from compressbench.store.keys import canonical

if TYPE_CHECKING:
    from compressbench.engine.prepare import Prepared

MOST_CHECKS = 24  # each takes about half a second


def check_places(space: Sequence[Parameter], configs: Configs) -> dict[str, Mapping[str, Any]]:
    """The configs of all options of the space, each option on top of the others' first one.

    Raises UserError for an option or a key that does not exist in any of them.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for settings in _options_in_turn(space, configs):
        chosen = overrides(space, settings)
        found[" ".join(chosen)] = configs(tuple(chosen))
    for parameter in space:
        if not any(exists(parameter, config) for config in found.values()):
            value = parameter.choices[0] if parameter.choices else parameter.low
            configs((parameter.override(value),))  # raises, and suggests the nearest key
            raise UserError(f"{parameter.key}: no such key")
    return found


def _options_in_turn(space: Sequence[Parameter], configs: Configs) -> Iterator[Settings]:
    groups = [p for p in space if p.group]
    yield draw(groups, configs, lambda p: p.choices[0])
    for one in groups:
        for value in one.choices[1:]:
            yield draw(groups, configs, lambda p, k=one.key, v=value: v if p.key == k  # type: ignore[misc]
                       else p.choices[0])  # fmt: skip


class DatasetFacts(NamedTuple):
    """What a sweep must know of its dataset; `contents` is their digest."""

    metric: str
    validation_rows: int
    contents: str


def read_dataset(dataset: Mapping[str, Any]) -> DatasetFacts:
    """The metric of a dataset, such as accuracy, its validation samples, and its contents."""
    from compressbench.engine.data_identity import contents_digest

    data = instantiate(dataset, "dataset")
    if not hasattr(data, "spec"):
        raise UserError(f"dataset._target_={dataset['_target_']} is not a dataset")
    return DatasetFacts(
        str(data.spec.metric), len(data.split("validation")), contents_digest(data)[:16]
    )


def check_values(ends: Sequence[Settings], space: Sequence[Parameter], configs: Configs) -> None:
    """Plan the recipes at the ends of the space, and with every choice and bound; then try the
    models of the first end.

    Raises UserError for an end that is refused, and for a value that is refused at all ends. Limits
    that cannot be met are infeasible trials of the sweep, unless none of the ends can meet its own.
    """
    from compressbench.config.run_config import RunConfig
    from compressbench.engine.model_trial import try_models
    from compressbench.engine.prepare import prepare

    datasets: dict[bytes, Data] = {}  # by their config, since reading one may take a second

    def plan(settings: Settings) -> Prepared:
        chosen = overrides(space, settings)
        with _naming(chosen):
            config = RunConfig.of(configs(tuple(chosen)))
            name = canonical(config.dataset)
            prepared = prepare(config, datasets.get(name))
            datasets[name] = prepared.context.data
            return prepared

    end, first = _first_planned(unique(list(ends)), plan)
    values = [(p, v) for p in space for v in p.choices or (p.rounded(p.low), p.rounded(p.high))]
    open_ = [(p, v) for p, v in values if not any(e.get(p.key) == v for e in ends)]
    for parameter, value in open_[:MOST_CHECKS]:
        _try_value(parameter, value, ends, plan)
    for note in first.context.data_notes:
        warn(make_console(), note)
    with _naming(overrides(space, end)):
        try_models(first.plan, first.context)


def _first_planned(
    ends: Sequence[Settings], plan: Callable[[Settings], Prepared]
) -> tuple[Settings, Prepared]:
    """Plan all ends; return the first one whose limits can be met, and its plan."""
    planned, beyond = [], []
    for settings in ends:
        try:
            planned.append((settings, plan(settings)))
        except LimitError as error:
            beyond.append(error)
    if not planned:
        raise beyond[0]
    for refused in beyond:
        warn(make_console(), f"infeasible: {refused}")
    return planned[0]


@contextmanager
def _naming(chosen: Sequence[str]) -> Iterator[None]:
    """Add the overrides of a trial to the errors that they cause."""
    try:
        yield
    except LimitError as error:
        raise LimitError(f"{error} (with {' '.join(chosen)})", error.excess) from error
    except UserError as error:
        raise UserError(f"{error} (with {' '.join(chosen)})") from error


def _try_value(
    parameter: Parameter,
    value: Any,
    ends: Sequence[Settings],
    plan: Callable[[Settings], object],
) -> None:
    refused: UserError | None = None
    for settings in ends:
        if parameter.key in settings and not parameter.group:
            try:
                plan({**settings, parameter.key: value})
                return
            except LimitError:
                return
            except UserError as error:
                refused = error
    if refused is not None:
        raise refused
