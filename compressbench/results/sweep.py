"""What a sweep is made of, as plain values: objectives, constraints, trials.

Below everything that searches, draws or tracks, so that each of them reads the same table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["minimize", "maximize"]
State = Literal["running", "complete", "pruned", "failed"]
FINISHED: tuple[State, ...] = ("complete", "pruned", "failed")


@dataclass(frozen=True)
class Objective:
    """A figure of the measurement, such as `val/accuracy`, and where it should go."""

    name: str
    direction: Direction


@dataclass(frozen=True)
class Constraint:
    """Of a figure of the measurement: at least `bound` where `at_least`, else at most that."""

    name: str
    at_least: bool
    bound: float

    def violation(self, value: float) -> float:
        """How far `value` is on the wrong side; at most 0 where it is feasible."""
        return self.bound - value if self.at_least else value - self.bound


@dataclass(frozen=True)
class Trial:
    """One row of a sweep. `settings` are what was suggested, by the override's key.

    `figures` are those of the last stage's exported file (DESIGN: `size/onnx_bytes`, ...);
    `folder` is the run folder, with `model.onnx`, `recipe.yaml`, `report.json`; `run` the value
    of the tag `compressbench.run`. `repeats` are the figures under other seeds. `ended` is the
    Unix time at which it finished, the same for all who ask; 0 is unknown.
    """

    number: int
    state: State
    settings: Mapping[str, Any]
    figures: Mapping[str, float] = field(default_factory=dict)
    folder: str = ""
    run: str = ""
    seconds: float = 0.0
    feasible: bool = True
    reason: str = ""  # why it failed or was stopped early
    repeats: Sequence[Mapping[str, float]] = ()
    ended: float = 0.0
    stages: int = 0
    hits: int = 0  # of those stages, from the store


@dataclass(frozen=True)
class Sweep:
    """A sweep as it is stored. `baseline` are the figures of the float model's exported file.

    `floor` is that of `front/hypervolume`, None for the default; `validation_rows` are the rows
    that `val/...` figures were taken on, None where unknown.
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
