"""Stops trials that can no longer reach the front: their best possible result is dominated.

The rule looks at each stage but the last, and at the finished trials whose later stages have the
same choices and integers: at least `LEAST_TRIALS`, the last `MOST_TRIALS`. They bound the end
twice, qualities (`val/...`) by differences, sizes, operations and latencies by ratios. A trial
gains no more from this stage to the end than any of them did. And it ends no further ahead of the
best of the `NEIGHBOURS` that were just ahead of it at this stage than any of them did. If with the
stricter bound of each objective, and `MARGIN` on top, it still would end dominated by a feasible
finished trial, it is stopped. A gain and an overtaking that were never seen before may be missed;
the margin and the number of trials bound how likely that is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from typing import Any

from compressbench.results import pareto
from compressbench.results.front import signed
from compressbench.results.sweep import Constraint, Objective
from compressbench.search.result import Result

LEAST_TRIALS = 8
MOST_TRIALS = 300
NEIGHBOURS = 3
MARGIN = 0.02  # of a quality; relative for sizes and times


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
    like = like[-MOST_TRIALS:]
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
    name, sign = objective.name, 1 if objective.direction == "maximize" else -1
    now = figures.get(name)
    pairs = [(b[name], r.figures[name]) for b, r in like if name in b and name in r.figures]
    if now is None or len(pairs) < LEAST_TRIALS:
        return None
    if name.startswith("val/"):
        return sign * _bound(sign * now, [(sign * b, sign * e) for b, e in pairs])
    if min(now, *(min(pair) for pair in pairs)) <= 0:
        return None
    ratios = [(sign * log(b), sign * log(e)) for b, e in pairs]
    return exp(sign * _bound(sign * log(now), ratios))


def _bound(now: float, pairs: Sequence[tuple[float, float]]) -> float:
    """The highest end of what has `now` at this stage, from (at this stage, at the end) of others,
    where higher is better and gains add up.
    """
    bound = now + max(end - before for before, end in pairs)
    ahead = _just_ahead(now, pairs)
    if ahead is not None:
        others = ((e, _just_ahead(b, [*pairs[:i], *pairs[i + 1 :]]))
                  for i, (b, e) in enumerate(pairs))  # fmt: skip
        leads = [end - best for end, best in others if best is not None]
        bound = min(bound, ahead + max([0.0, *leads]))
    return bound + MARGIN


def _just_ahead(now: float, pairs: Sequence[tuple[float, float]]) -> float | None:
    """The best end of the neighbours that are just ahead, and of all that tie with the last of
    them; None where there are fewer.
    """
    ahead = sorted(pair for pair in pairs if pair[0] >= now)
    if len(ahead) < NEIGHBOURS:
        return None
    last = ahead[NEIGHBOURS - 1][0]
    return max(end for before, end in ahead if before <= last)
