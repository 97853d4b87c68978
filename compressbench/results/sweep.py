"""Defines the data of a sweep: objectives, constraints and trials, as plain values.

Search, charts and tracking all import this module, so that they share one data model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["minimize", "maximize"]
State = Literal["running", "complete", "pruned", "failed", "infeasible"]
FINISHED: tuple[State, ...] = ("complete", "pruned", "failed", "infeasible")


@dataclass(frozen=True)
class Objective:
    """A figure of the measurement, such as `val/accuracy`, to minimize or maximize."""

    name: str
    direction: Direction


@dataclass(frozen=True)
class Constraint:
    """A bound on a figure of the measurement: a lower bound if `at_least`, else an upper bound."""

    name: str
    at_least: bool
    bound: float

    def violation(self, value: float) -> float:
        """By how much `value` violates the bound; zero or negative if it is feasible."""
        return self.bound - value if self.at_least else value - self.bound


@dataclass(frozen=True)
class Trial:
    """One trial of a sweep.

    Attributes:
        number: Number of the trial, from 0.
        state: Whether it runs, or how it ended; "pruned" is stopped early, "infeasible" refused
            for its settings.
        settings: Suggested values by the key of the override.
        figures: Figures of the final stage's exported file, such as `size/onnx_bytes`.
        folder: Run folder, with `model.onnx`, `recipe.yaml` and `report.json`.
        run: Value of the MLflow tag `compressbench.run`.
        seconds: Duration.
        feasible: Whether it satisfies the constraints.
        reason: Why it failed, was refused or was stopped early.
        violation: By what share the limit of an infeasible trial cannot be met; 1 without a limit.
        repeats: Figures of the same settings with other seeds.
        ended: Unix time at which it finished, as stored; 0 if unknown.
        stages: Number of stages.
        hits: Number of stages that came from the store.
    """

    number: int
    state: State
    settings: Mapping[str, Any]
    figures: Mapping[str, float] = field(default_factory=dict)
    folder: str = ""
    run: str = ""
    seconds: float = 0.0
    feasible: bool = True
    reason: str = ""
    repeats: Sequence[Mapping[str, float]] = ()
    ended: float = 0.0
    stages: int = 0
    hits: int = 0
    violation: float = 0.0


@dataclass(frozen=True)
class Sweep:
    """A sweep as it is stored.

    `baseline` are the figures of the float model's exported file, `floor` is that of
    `front/hypervolume` (None for the default), `validation_rows` is the number of samples that
    `val/...` figures were measured on (None if unknown).
    """

    name: str
    folder: str
    command: Sequence[str]
    metric: str  # such as "accuracy": figures are `val/<metric>` and `test/<metric>`
    objectives: Sequence[Objective]
    constraints: Sequence[Constraint]
    n_trials: int
    baseline: Mapping[str, float]
    trials: Sequence[Trial]
    floor: float | None = None
    validation_rows: int | None = None
