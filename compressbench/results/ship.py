"""Chooses the model of a front to ship."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.formatting import bytes_text
from compressbench.core.metrics import metric_of
from compressbench.results import front as fronts
from compressbench.results.front_table import (
    figure_text,
)
from compressbench.results.report_file import (
    MODEL_FILE,
    REPORT_FILE,
    check_shipped,
    read_report,
)
from compressbench.results.sweep import Sweep, Trial


@dataclass(frozen=True)
class Wanted:
    """Requirements on the file to ship: at most `budget_bytes`, as good as `minimum`, the knee."""

    budget_bytes: float | None = None
    minimum: float | None = None
    knee: bool = False

    @property
    def asked(self) -> bool:
        """Whether there are any requirements."""
        return self.budget_bytes is not None or self.minimum is not None or self.knee


@dataclass(frozen=True)
class Member:
    """A trial on a front, with its sweep."""

    sweep: Sweep
    trial: Trial

    @property
    def size_bytes(self) -> float:
        return self.trial.figures.get(fronts.size_name(self.sweep), math.inf)

    @property
    def metric(self) -> float:
        worst = -math.inf if metric_of(self.sweep.metric).higher else math.inf
        return self.trial.figures.get(fronts.metric_name(self.sweep), worst)

    @property
    def quality(self) -> float:
        """The metric, so that higher is better."""
        return self.metric if metric_of(self.sweep.metric).higher else -self.metric

    @property
    def text(self) -> str:
        """The trial, its size and its metric, for messages."""
        metric = self.sweep.metric
        return (
            f"trial {self.trial.number} of {self.sweep.name} "
            f"({bytes_text(self.size_bytes)}, {metric} "
            f"{figure_text(fronts.metric_name(self.sweep), self.metric, metric)})"
        )


def choose(sweeps: Sequence[Sweep], wanted: Wanted) -> Member:
    """Choose the member to ship. Raises UserError that names the nearest member if none qualifies.

    With a budget, the best metric that fits (then the smallest file); with only a minimum, the
    smallest file (then the best metric); with `knee`, the knee of the members that qualify.
    """
    all_members = [Member(s, t) for s in sweeps for t in fronts.members(s)]
    fit = [m for m in all_members if wanted.budget_bytes is None
           or m.size_bytes <= wanted.budget_bytes]  # fmt: skip
    if not fit:
        smallest = min(all_members, key=lambda m: m.size_bytes)
        raise UserError(
            f"--budget {bytes_text(wanted.budget_bytes)}: no model on the front is that small; "
            f"the smallest is {smallest.text}"
        )
    form = metric_of(sweeps[0].metric)
    good = [m for m in fit if wanted.minimum is None
            or form.at_least_as_good(m.metric, wanted.minimum)]  # fmt: skip
    if not good:
        best, metric = max(fit, key=lambda m: m.quality), sweeps[0].metric
        within = "" if wanted.budget_bytes is None else " within the budget"
        least = figure_text(fronts.metric_name(sweeps[0]), wanted.minimum, metric)
        raise UserError(
            f"--at-{'least' if form.higher else 'most'} {least}: no model on the front{within} is "
            f"that good; the best is {best.text}"
        )
    if wanted.knee:
        return _knee(good)
    if wanted.budget_bytes is None:
        return min(good, key=lambda m: (m.size_bytes, -m.quality))
    return min(good, key=lambda m: (-m.quality, m.size_bytes))


def check_file(member: Member) -> None:
    """Raise CheckFailedError unless the figures of a member are those of its model.onnx.

    Nothing is checked where its run folder is not on this machine.
    """
    folder = Path(member.trial.folder)
    if not member.trial.folder or not (folder / MODEL_FILE).is_file():
        return
    report = read_report(folder)
    check_shipped(folder, report)
    (final,) = (s["figures"] for s in report["stages"] if s["name"] == report["final"])
    for name, value in member.trial.figures.items():
        if name in final and final[name] != value:
            raise CheckFailedError(
                f"{member.text}: {name} is {value:g} in the sweep, but {final[name]:g} was "
                f"measured ({folder / REPORT_FILE}): do not ship it"
            )


def _knee(kept: Sequence[Member]) -> Member:
    """The knee of members of one or more sweeps together."""
    numbered = {i: replace(m.trial, number=i) for i, m in enumerate(kept)}
    joined = replace(kept[0].sweep, trials=tuple(numbered.values()))
    front = fronts.members(joined)
    knee = fronts.knee(joined, front)
    if knee is None:
        floor = fronts.floor_of(joined)
        raise UserError(f"--knee: no model on the front is above the floor of {floor:.4g}")
    return kept[knee.number]
