"""Reads and checks the `search` section of the config."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from compressbench.core.errors import UserError
from compressbench.core.metrics import metric_of, range_of_figure
from compressbench.core.nearest import nearest
from compressbench.core.validation import (
    check_flag,
    check_integer,
    check_path,
    check_positive,
    check_seed,
    shown,
)
from compressbench.results.sweep import Constraint, Direction, Objective

_FIGURES = ("size/onnx_bytes", "size/download_bytes", "size/params", "size/nonzero",
            "size/theoretical_bits", "compute/macs", "compute/integer_kernels", "latency/p50_ms",
            "latency/p95_ms", "latency/speedup", "val/agreement")  # fmt: skip
MOST_WORKERS = 1000
_NAME = re.compile(r"[\w.\- ]{1,100}")


@dataclass(frozen=True)
class Options:
    """`conf/search/default.yaml` says what each one is."""

    name: str | None
    n_trials: int | None
    workers: int
    objectives: Sequence[str] | None
    constraints: Sequence[str]
    space: Mapping[str, Any]
    enqueue: Sequence[Mapping[str, Any]]
    corners: bool
    early_stop: bool
    seeds: int
    seed: int
    folder: str
    storage: str | None
    lease_seconds: float
    sampler: Mapping[str, Any]


def read_options(section: Any) -> Options:
    """Options of a plain config section. Raises UserError in one line."""
    names = {f.name for f in fields(Options)}
    if not isinstance(section, Mapping):
        raise UserError(f"search must be a section of options, got {section!r}")
    for name in sorted(set(section) ^ names):
        problem = "is required" if name in names else f"no such key{nearest(name, names)}"
        raise UserError(f"search.{name}: {problem}")
    options = Options(**section)
    _check_numbers(options)
    if options.name is not None and (
        not isinstance(options.name, str) or not _NAME.fullmatch(options.name)
        or options.name.strip(". ") != options.name
    ):  # fmt: skip
        raise UserError(f"search.name must be letters, digits, '_', '-', got {shown(options.name)}")
    for name, kind in (("constraints", list), ("enqueue", list), ("space", dict),
                       ("folder", str), ("sampler", dict)):  # fmt: skip
        if not isinstance(section[name], kind):
            word = {list: "a list", dict: "a section", str: "text"}[kind]
            raise UserError(f"search.{name} must be {word}, got {shown(section[name])}")
    check_path("search.folder", options.folder)
    if options.storage is not None and not isinstance(options.storage, str):
        raise UserError(f"search.storage must be a URL or null, got {options.storage!r}")
    return options


def _check_numbers(options: Options) -> None:
    if options.n_trials is not None:
        check_integer("search.n_trials", options.n_trials, 1, 10**6)
    check_integer("search.workers", options.workers, 1, MOST_WORKERS)
    check_integer("search.seeds", options.seeds, 1, 1000)
    check_seed("search.seed", options.seed)
    check_positive("search.lease_seconds", options.lease_seconds, 10**6)
    check_flag("search.corners", options.corners)
    check_flag("search.early_stop", options.early_stop)


def read_objectives(texts: Sequence[str] | None, metric: str) -> tuple[Objective, ...]:
    """Parse `maximize val/accuracy` and so on; None means the metric against download bytes."""
    if texts is None:
        wanted = "maximize" if metric_of(metric).higher else "minimize"
        texts = [f"{wanted} val/{metric}", "minimize size/download_bytes"]
    if not isinstance(texts, (list, tuple)) or not texts:
        raise UserError(f"search.objectives must name at least one figure, got {texts!r}")
    found = tuple(_objective(text, metric) for text in texts)
    names = [o.name for o in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"search.objectives names {name} twice")
    return found


def _objective(text: Any, metric: str) -> Objective:
    words = str(text).split()
    directions: dict[str, Direction] = {"maximize": "maximize", "minimize": "minimize"}
    if len(words) != 2 or words[0] not in directions:
        raise UserError(
            f"search.objectives: {text!r} must be 'maximize FIGURE' or 'minimize FIGURE', "
            f"such as 'maximize val/{metric}'"
        )
    return Objective(_figure(words[1], metric, "objectives"), directions[words[0]])


def _figure(name: str, metric: str, where: str) -> str:
    known = {*_FIGURES, f"val/{metric}", f"val/{metric}_torch"}
    if name.startswith("test/"):
        raise UserError(f"search.{where}: {name}: a search never reads test data; use val/{metric}")
    if name not in known:
        raise UserError(f"search.{where}: there is no figure {name}{nearest(name, known)}")
    return name


def read_constraints(texts: Sequence[str], metric: str) -> tuple[Constraint, ...]:
    """Parse `val/accuracy >= 0.9` and so on. Raises UserError for constraints no trial can meet."""
    found = tuple(_constraint(text, metric) for text in texts)
    for name in {c.name for c in found}:
        floors = [c.bound for c in found if c.name == name and c.at_least]
        ceilings = [c.bound for c in found if c.name == name and not c.at_least]
        low, high = range_of_figure(name)
        floors += [] if low is None else [low]
        ceilings += [] if high is None else [high]
        if floors and ceilings and max(floors) > min(ceilings):
            raise UserError(
                f"search.constraints: {name} cannot be at least {max(floors):g} and at most "
                f"{min(ceilings):g}"
            )
    return found


def _constraint(text: Any, metric: str) -> Constraint:
    match = re.fullmatch(r"\s*(\S+)\s*(>=|<=)\s*(\S+)\s*", str(text))
    if match is None:
        raise UserError(
            f"search.constraints: {text!r} must be 'FIGURE >= NUMBER' or 'FIGURE <= NUMBER', "
            f"such as 'val/{metric} >= 0.9'"
        )
    name, sign, number = match.groups()
    try:
        bound = float(number)
    except ValueError:
        bound = math.nan
    if not math.isfinite(bound):
        raise UserError(f"search.constraints: {text!r}: {number} is not a number")
    return Constraint(_figure(name, metric, "constraints"), sign == ">=", bound)
