"""Computes the Pareto front of a sweep: its members, their noise, its hypervolume and its knee.

Of several trials with the same figures in every objective, the one with the lowest number is a
member. Trials that are infeasible, incomplete, or lack the figure of an objective are not members.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from compressbench.core.metrics import metric_of
from compressbench.results import pareto
from compressbench.results.sweep import FINISHED, Objective, Sweep, Trial

SIZES = {"onnx": "size/onnx_bytes", "download": "size/download_bytes"}


@dataclass(frozen=True)
class Axes:
    """The two objectives that a chart of the front shows."""

    x: Objective
    y: Objective


def axes(sweep: Sweep) -> Axes:
    """Choose the axes: the metric, or else the first objective, over a size, or else the next one.

    A sweep with a single objective is shown over the size, or the size under the metric.
    """
    named = {o.name: o for o in sweep.objectives}
    first = sweep.objectives[0]
    if len(named) == 1 and first.name in SIZES.values():
        return Axes(first, metric_objective(sweep))
    y = named.get(metric_name(sweep), first)
    others = [o for o in sweep.objectives if o is not y] or [
        Objective(size_name(sweep), "minimize")
    ]
    return Axes(next((o for o in others if o.name in SIZES.values()), others[0]), y)


def metric_name(sweep: Sweep) -> str:
    """The name of the validation metric, such as `val/accuracy`."""
    return f"val/{sweep.metric}"


def metric_objective(sweep: Sweep) -> Objective:
    """The validation metric, in the direction in which it is better."""
    higher = metric_of(sweep.metric).higher
    return Objective(metric_name(sweep), "maximize" if higher else "minimize")


def size_name(sweep: Sweep) -> str:
    """The size among the sweep's objectives, or else the download size."""
    return next((o.name for o in sweep.objectives if o.name in SIZES.values()), SIZES["download"])


def with_size(sweep: Sweep, size: str) -> Sweep:
    """A copy of the sweep with `size` ("onnx" or "download") as its size objective."""
    wanted = SIZES[size]
    objectives = tuple(
        replace(o, name=wanted) if o.name in SIZES.values() else o for o in sweep.objectives
    )
    unique = {o.name: o for o in objectives}
    return replace(sweep, objectives=tuple(unique.values()))


def candidates(sweep: Sweep) -> list[Trial]:
    """The trials that may be on the front (complete, feasible, with all figures), by number."""
    return [t for t in sorted(sweep.trials, key=lambda t: t.number) if _counts(t, sweep.objectives)]


def _counts(trial: Trial, objectives: Iterable[Objective]) -> bool:
    return (
        trial.state == "complete"
        and trial.feasible
        and all(math.isfinite(trial.figures.get(o.name, math.nan)) for o in objectives)
    )


def losses(trials: Sequence[Trial], objectives: Sequence[Objective]) -> pareto.Losses:
    """The figures of `trials` as an array (trials, objectives) in which lower is better."""
    return signed([[t.figures[o.name] for o in objectives] for t in trials], objectives)


def signed(values: Sequence[Sequence[float]], objectives: Sequence[Objective]) -> pareto.Losses:
    """Values of objectives as an array (rows, objectives) in which lower is better."""
    signs = np.array([-1.0 if o.direction == "maximize" else 1.0 for o in objectives])
    return signs * np.array(values, dtype=np.float64).reshape(len(values), len(objectives))


def members(sweep: Sweep) -> list[Trial]:
    """The front, from the largest file to the smallest (worst to best on the x axis)."""
    trials = candidates(sweep)
    values = losses(trials, sweep.objectives)
    mask = pareto.front_mask(values) & pareto.distinct(values)
    across = axes(sweep).x
    sign = -1 if across.direction == "minimize" else 1
    front = [t for t, inside in zip(trials, mask, strict=True) if inside]
    return sorted(front, key=lambda t: (sign * t.figures.get(across.name, math.inf), t.number))


def standard_error(trial: Trial, name: str, sweep: Sweep) -> float:
    """The standard error of one figure of a trial; 0 if unknown.

    The larger of the standard deviation over seeds and, for shares of independent samples such as
    accuracy, the binomial error for the number of validation rows.
    """
    repeated = [r[name] for r in trial.repeats if name in r]
    errors = [pareto.spread([trial.figures[name], *repeated])] if repeated else []
    share = name == metric_name(sweep) and metric_of(sweep.metric).binomial
    if share and sweep.validation_rows:
        errors.append(pareto.binomial_error(trial.figures[name], sweep.validation_rows))
    return max(errors, default=0.0)


def within_noise(sweep: Sweep, front: Sequence[Trial]) -> set[int]:
    """Numbers of the members that another member dominates up to noise."""
    if not front:
        return set()
    errors = [[standard_error(t, o.name, sweep) for o in sweep.objectives] for t in front]
    marked = pareto.dominated_within_noise(losses(front, sweep.objectives), np.array(errors))
    return {t.number for t, mark in zip(front, marked, strict=True) if mark}


def floor_of(sweep: Sweep) -> float | None:
    """The metric below which the hypervolume ignores models; None without a baseline."""
    if sweep.floor is not None:
        return sweep.floor
    base = sweep.baseline.get(metric_name(sweep))
    if base is None:
        return None
    below = pareto.FLOOR_BELOW_BASELINE * _unit_of_metric(sweep, base)
    return base - below if metric_of(sweep.metric).higher else base + below


def _unit_of_metric(sweep: Sweep, base: float) -> float:
    """What counts as 100 points of a metric: 1 for shares, the baseline's value for others."""
    return 1.0 if metric_of(sweep.metric).is_share else abs(base) or 1.0


def hypervolume(sweep: Sweep, trials: Iterable[Trial] | None = None) -> float | None:
    """`front/hypervolume` of `trials`, by default all of the sweep; None without a baseline."""
    floor, reference = floor_of(sweep), sweep.baseline.get(SIZES["onnx"])
    if floor is None or not reference:
        return None
    wanted = _volume_objectives(sweep)
    metric, size = (o.name for o in wanted)
    taken = [t for t in (sweep.trials if trials is None else trials) if _counts(t, wanted)]
    base = sweep.baseline.get(metric, 1.0)
    sign = (1 if metric_of(sweep.metric).higher else -1) / _unit_of_metric(sweep, base)
    return pareto.front_hypervolume(
        [sign * t.figures[metric] for t in taken],
        [t.figures[size] for t in taken],
        reference,
        sign * floor,
    )


def finished(sweep: Sweep) -> list[Trial]:
    """Complete, pruned and failed trials, in the order they ended."""
    return sorted(
        (t for t in sweep.trials if t.state in FINISHED), key=lambda t: (t.ended, t.number)
    )


def history(sweep: Sweep) -> list[float]:
    """The hypervolume after each finished trial; empty without a baseline."""
    if hypervolume(sweep, []) is None:
        return []
    wanted = _volume_objectives(sweep)
    metric, size = (o.name for o in wanted)
    good = metric_of(sweep.metric).at_least_as_good
    front: list[Trial] = []
    values: list[float] = []
    volume = 0.0
    for trial in finished(sweep):
        figures = trial.figures
        if _counts(trial, wanted) and not any(
            good(t.figures[metric], figures[metric]) and t.figures[size] <= figures[size]
            for t in front
        ):
            points = [*front, trial]
            inside = pareto.front_mask(losses(points, wanted))
            front = [t for t, kept in zip(points, inside, strict=True) if kept]
            volume = hypervolume(sweep, front) or 0.0
        values.append(volume)
    return values


def _volume_objectives(sweep: Sweep) -> tuple[Objective, Objective]:
    """The objectives of the hypervolume, whatever the objectives of the sweep."""
    return metric_objective(sweep), Objective(size_name(sweep), "minimize")


def knee(sweep: Sweep, front: Sequence[Trial]) -> Trial | None:
    """The knee of the members above the floor, with sizes on a log scale (see `pareto.knee`).

    None if no member is above the floor. Members below it are useless models that would shift the
    knee towards them.
    """
    floor, metric = floor_of(sweep), metric_name(sweep)
    good = metric_of(sweep.metric).at_least_as_good
    kept = [t for t in front if floor is None or good(t.figures.get(metric, floor), floor)]
    if not kept:
        return None
    values = losses(kept, sweep.objectives)
    for column, objective in enumerate(sweep.objectives):
        if objective.name in SIZES.values():
            values[:, column] = np.log2(values[:, column])
    return kept[pareto.knee(values)]
