"""Early stopping: the rule against a slow loop, and that it stops no trial of a front."""

from __future__ import annotations

import math
import random

import pytest

from compressbench.results import pareto
from compressbench.results.front import signed
from compressbench.results.sweep import Constraint, Objective
from compressbench.search.early_stopping import LEAST_TRIALS, MARGIN, NEIGHBOURS, hopeless
from compressbench.search.result import Result

VAL, SIZE = "val/accuracy", "size/download_bytes"
OBJECTIVES = (Objective(VAL, "maximize"), Objective(SIZE, "minimize"))
BITS, SPARSITY = "recipe.stages.quantize.bits", "recipe.stages.prune.sparsity"


def trial(chance: random.Random, gain: float = 0.2):
    """A made-up recipe prune, finetune, quantize: settings, figures of each stage, result."""
    settings = {SPARSITY: chance.uniform(0.1, 0.95), BITS: chance.choice([4, 8])}
    pruned = 0.95 - settings[SPARSITY] ** 3 + chance.gauss(0, 0.01)
    tuned = pruned + gain * settings[SPARSITY] * chance.uniform(0.8, 1)
    end = tuned - 0.05 / settings[BITS] * chance.uniform(0.8, 1)
    size = 1e5 * (1.05 - settings[SPARSITY])
    rows = [("prune", pruned, size), ("finetune", tuned, size),
            ("quantize", end, size * settings[BITS] / 32 * chance.uniform(0.95, 1.05))]  # fmt: skip
    stages = [{"name": n, "figures": {VAL: v, SIZE: s}} for n, v, s in rows]
    return settings, Result("complete", {VAL: rows[-1][1], SIZE: rows[-1][2]}, stages=stages)


def ask(settings, result, done, constraints=()):
    return hopeless("prune", result.stages[0]["figures"], {BITS: settings[BITS]}, done,
                    OBJECTIVES, constraints)  # fmt: skip


def dominates(a, b, objectives):
    return pareto.dominates(*signed([a, b], objectives))


def front(points, objectives):
    return pareto.front_mask(signed(points, objectives)).nonzero()[0].tolist()


@pytest.mark.parametrize("seed", range(5))
def test_it_stops_many_trials_and_none_of_the_front(seed):
    chance = random.Random(seed)
    done, stopped, missed = [], 0, []
    for _ in range(150):
        settings, result = trial(chance)
        if ask(settings, result, done):
            stopped += 1
            missed.append(result)
        else:
            done.append((settings, result))
    kept = [r.values(OBJECTIVES) for _, r in done]
    everything = kept + [r.values(OBJECTIVES) for r in missed]
    assert stopped > 15
    assert all(i < len(kept) for i in front(everything, OBJECTIVES))


def slow_bound(now, like, name, up):
    """The rule in loops, on logarithms of sizes: gains, and neighbours with their leads."""
    unit = (lambda v: v) if name == VAL else math.log
    sign = 1 if up else -1
    rows = [(sign * unit(r.stages[0]["figures"][name]), sign * unit(r.figures[name])) for r in like]
    place = sign * unit(now[name])
    bound = place + max(end - before for before, end in rows)

    def ahead(place, others):
        waiting, taken = [row for row in others if row[0] >= place], []
        while waiting and len(taken) < NEIGHBOURS:
            edge = min(before for before, _ in waiting)
            taken += [end for before, end in waiting if before == edge]
            waiting = [row for row in waiting if row[0] != edge]
        return max(taken) if len(taken) >= NEIGHBOURS else None

    lead = 0.0
    for number, (before, end) in enumerate(rows):
        best = ahead(before, [row for other, row in enumerate(rows) if other != number])
        if best is not None and end - best > lead:
            lead = end - best
    best = ahead(place, rows)
    bound = (bound if best is None else min(bound, best + lead)) + MARGIN
    return bound if name == VAL else math.exp(sign * bound)


def test_the_bound_is_the_largest_gain_of_like_trials_and_the_end_of_those_just_ahead():
    chance = random.Random(7)
    done = [trial(chance) for _ in range(60)]
    for settings, result in [trial(chance) for _ in range(40)]:
        like = [r for s, r in done if s[BITS] == settings[BITS]]
        now = result.stages[0]["figures"]
        end = [slow_bound(now, like, VAL, True), slow_bound(now, like, SIZE, False)]
        wanted = any(dominates(r.values(OBJECTIVES), end, OBJECTIVES) for _, r in done)
        said = ask(settings, result, done)
        assert bool(said) == wanted
        if said:
            assert said.startswith("stopped after prune: it would end with val/accuracy <= ")


def test_it_needs_enough_like_trials_and_a_feasible_front():
    chance = random.Random(1)
    done = [trial(chance) for _ in range(200)]
    settings, result = next(p for p in iter(lambda: trial(chance), None) if ask(*p, done))
    few = [(s, r) for s, r in done if s[BITS] == settings[BITS]][: LEAST_TRIALS - 1]
    others = [(s, r) for s, r in done if s[BITS] != settings[BITS]]
    assert not ask(settings, result, few + others)
    assert not ask(settings, result, done, (Constraint(VAL, True, 2.0),))
    failed = [(s, Result("failed", r.figures, stages=r.stages)) for s, r in done]
    assert not ask(settings, result, failed)
    assert not hopeless("another", {}, {}, done, OBJECTIVES, ())


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_optunas(seed):
    import optuna

    chance = random.Random(seed)
    count = chance.choice([1, 2, 3])
    objectives = [Objective(f"o{i}", chance.choice(["minimize", "maximize"])) for i in range(count)]
    points = [[chance.randrange(6) for _ in range(count)] for _ in range(30)]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=[o.direction for o in objectives])
    for point in points:
        study.add_trial(optuna.trial.create_trial(values=point))
    best = study.best_trials if count > 1 else [
        t for t in study.trials if t.value == study.best_value
    ]  # fmt: skip
    assert front(points, objectives) == [t.number for t in best]
