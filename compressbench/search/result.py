"""The result of a trial, stored as plain JSON with the trial's lease."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from compressbench.core.digests import digest
from compressbench.core.errors import TransientError
from compressbench.results.sweep import Constraint, Objective

_DIGITS = 16  # of the digest of a result
Kind = Literal["", "user", "check", "memory", "bug", "lost"]


@dataclass(frozen=True)
class Result:
    """The end of a trial.

    "infeasible" are settings that were refused, so that they would be again; "failed" is everything
    else that went wrong, such as a full disk. `folder` is relative to the sweep's; `same_as` is the
    number of the trial whose answer was taken. `stages` hold each stage's objectives and
    constraints.
    """

    state: Literal["complete", "pruned", "failed", "infeasible"]
    figures: Mapping[str, float] = field(default_factory=dict)
    baseline: Mapping[str, float] = field(default_factory=dict)
    stages: Sequence[Mapping[str, Any]] = ()
    folder: str = ""
    run: str = ""
    seconds: float = 0.0
    ended: float = 0.0  # Unix time
    reason: str = ""
    kind: Kind = ""  # of a failure or refusal
    violation: float = 0.0  # of an infeasible trial: by what share its limit cannot be met, else 1
    same_as: int | None = None

    def dump(self) -> str:
        """The result as JSON, behind its digest."""
        text = json.dumps(asdict(self), allow_nan=False)
        return f"{digest([text])[:_DIGITS]} {text}"

    def values(self, objectives: Sequence[Objective]) -> list[float] | None:
        """The values of the objectives; None for one that was not measured."""
        found = [self.figures.get(o.name) for o in objectives]
        return [v for v in found if v is not None] if None not in found else None

    def violations(self, constraints: Sequence[Constraint]) -> dict[str, float]:
        """The violation of each constraint, at most 0 if it holds; 1 for a missing figure."""
        return {
            f"{c.name} {'>=' if c.at_least else '<='} {c.bound:g}": c.violation(
                self.figures[c.name]
            )
            if c.name in self.figures
            else 1.0
            for c in constraints
        }

    def feasible(self, constraints: Sequence[Constraint]) -> bool:
        return self.state == "complete" and not any(
            violation > 0 for violation in self.violations(constraints).values()
        )


def load(stored: str) -> Result:
    """The inverse of `dump`. Raises TransientError for a text that was changed."""
    if stored.startswith("{"):  # of an older version
        return Result(**json.loads(stored))
    stamp, _, text = stored.partition(" ")
    if digest([text])[:_DIGITS] != stamp:
        raise TransientError(
            "the stored result of a trial is damaged: the same command mends the sweep's database"
        )
    return Result(**json.loads(text))
