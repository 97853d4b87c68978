"""When a trial is hopeless: its best possible end is dominated by the front already.

The rule looks at each stage but the last. Of the finished trials whose later stages have the same
choices and integers (at least `LEAST_TRIALS` of them), it takes the largest gain that an objective
ever made from this stage to the end: a difference for qualities (`val/...`), a ratio for sizes,
operations and latencies. With that gain, and `MARGIN` on top, this trial still would end dominated
by a feasible finished one: then it is stopped. A gain that was never seen before may be missed;
the margin and the number of trials bound how likely that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compressbench import pareto
from compressbench.fronts import signed
from compressbench.search.result import Result
from compressbench.trials import Constraint, Objective

LEAST_TRIALS = 8
MARGIN = 0.01  # of a quality; relative for sizes and times


def hopeless(
    stage: str,
    figures: Mapping[str, float],
    later: Mapping[str, Any],
    finished: Iterable[tuple[Mapping[str, Any], Result]],
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
) -> str:
    """Why a trial with `figures` after `stage` should stop, "" if it should go on.

    `later` are its settings of later stages; `finished` the settings and results of trials.
    """
    complete = [(s, r) for s, r in finished if r.state == "complete" and r.values(objectives)]
    discrete = {k: v for k, v in later.items() if not isinstance(v, float)}
    like = [
        (before, result)
        for settings, result in complete
        if all(settings.get(k) == v for k, v in discrete.items())
        and (before := _after(stage, result)) is not None
    ]
    if len(like) < LEAST_TRIALS:
        return ""
    best = [_best_end(o, figures, like) for o in objectives]
    if None in best:
        return ""
    ends = [b for b in best if b is not None]
    for _, result in complete:
        ours, best_end = signed([result.values(objectives) or [], ends], objectives)
        if result.feasible(constraints) and pareto.dominates(ours, best_end):
            shown = ", ".join(
                f"{o.name} {'<=' if o.direction == 'maximize' else '>='} {end:.6g}"
                for o, end in zip(objectives, ends, strict=True)
            )
            return f"stopped after {stage}: it would end with {shown}, which is dominated"
    return ""


def _after(stage: str, result: Result) -> Mapping[str, float] | None:
    for row in result.stages:
        if row["name"] == stage:
            found: Mapping[str, float] = row["figures"]
            return found
    return None


def _best_end(
    objective: Objective,
    figures: Mapping[str, float],
    like: Sequence[tuple[Mapping[str, float], Result]],
) -> float | None:
    """The best value that the objective may still reach; None where figures are missing."""
    name, up = objective.name, objective.direction == "maximize"
    now = figures.get(name)
    pairs = [(b[name], r.figures[name]) for b, r in like if name in b and name in r.figures]
    if now is None or len(pairs) < LEAST_TRIALS:
        return None
    best = max if up else min
    if name.startswith("val/"):
        gain = best(end - before for before, end in pairs)
        return now + gain + (MARGIN if up else -MARGIN)
    gain = best(end / before if before else 1.0 for before, end in pairs)
    return now * gain * (1 + MARGIN if up else 1 - MARGIN)
