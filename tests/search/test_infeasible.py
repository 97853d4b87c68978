"""Refused settings are knowledge: told to the sampler, never repeated, counted apart."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState

from compressbench.config.instantiate import instantiate
from compressbench.core.errors import CheckFailedError, LimitError
from compressbench.results import front as fronts
from compressbench.results.front_table import headline
from compressbench.results.sweep import Constraint
from compressbench.results.sweep_file import read_sweep, write_sweep
from compressbench.results.sweep_terminal import counts, trial_line
from compressbench.search.command import _describe
from compressbench.search.repeats import final_front
from compressbench.search.result import load
from compressbench.search.snapshot import as_sweep
from compressbench.search.summary import show_end
from compressbench.search.trial import failure
from compressbench.search.worker import _same
from compressbench.search.worker_loop import work
from compressbench.tracking.run_session import Tracked
from tests.search.noop import answer, make_spec, make_storage, settings_of

BEYOND = LimitError("macs=10 cannot be reached: pruning leaves at least 15", 0.5)


def of_two_bits(trial, lease):
    """A trial whose 2-bit settings are refused, the others run."""
    return failure(BEYOND) if settings_of(trial)["bits"] == 2 else answer(trial, lease)


def swept(folder, sampler: str, n_trials: int, options=(), **changes):
    spec = make_spec(folder, n_trials, **changes)
    storage = make_storage(spec)
    target = {"_target_": f"compressbench.search.samplers.{sampler}.{sampler}", **dict(options)}
    storage.study.sampler = instantiate(target, "search.sampler", seed=1, number=0)
    work(storage, spec, "w", of_two_bits)
    return spec, storage


def test_tpe_learns_what_is_refused(tmp_path):
    """Random settings are refused in a third of the trials; told as failures, in nearly all."""
    _, storage = swept(tmp_path, "tpe", 30)
    late = [trial for trial in storage.trials() if trial.number >= 10]
    assert sum(trial.params["bits"] == 2 for trial in late) <= 6
    assert all(trial.params["bits"] != 2 for trial in storage.study.best_trials)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("nsgaii", {"population_size": 4}),
        ("nsgaiii", {"population_size": 4}),
        pytest.param("gp", {"n_startup_trials": 6}, marks=pytest.mark.long),
    ],
)
def test_the_other_samplers_take_it_too(tmp_path, sampler, options):
    bound = Constraint("val/accuracy", True, 0.1)
    _, storage = swept(tmp_path, sampler, 12, options, constraints=(bound,))
    trials = storage.trials()
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert any(trial.params["bits"] == 2 for trial in trials)
    assert all(trial.params["bits"] != 2 for trial in storage.study.best_trials)


def test_all_samplers_are_told_the_amount_of_the_violation(tmp_path):
    bound = Constraint("val/accuracy", True, 0.1)
    _, storage = swept(tmp_path, "random", 12, constraints=(bound,))
    refused = [trial for trial in storage.trials() if trial.params["bits"] == 2]
    others = [trial for trial in storage.trials() if trial.params["bits"] != 2]
    assert refused and others
    for trial in refused:
        assert trial.state is TrialState.COMPLETE
        assert trial.constraints == {"refused": 0.5, "val/accuracy >= 0.1": 1.0}
        assert trial.values == [float("-inf"), float("inf")]
    assert {trial.constraints["refused"] for trial in others} == {-1.0}


def test_what_was_refused_is_answered_without_being_computed(tmp_path):
    known = {"x": 0.25, "bits": 2}
    spec = make_spec(tmp_path, 3, starts=(known, known, known))
    storage, asked = make_storage(spec), []

    def perform(trial, lease):
        settings = settings_of(trial)
        same = _same(storage, trial.number, settings)
        asked.append(same is None)
        return same or failure(MemoryError() if len(asked) == 1 else BEYOND)

    work(storage, spec, "w", perform)
    assert asked == [True, True, False]  # a failure may go well the second time
    assert [t.state.name for t in storage.trials()] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert load(storage.leases.result("trial/2")).same_as == 1


def test_it_is_counted_apart_and_survives_a_restart(tmp_path, capsys):
    spec, _ = swept(tmp_path, "random", 12)
    description = _describe(spec, {})
    again = make_storage(spec, create=False)
    sweep = as_sweep(again, description, spec.home)
    refused = [trial for trial in sweep.trials if trial.settings["bits"] == 2]
    assert {t.state for t in refused} == {"infeasible"} and len(refused) < 12
    assert {t.violation for t in refused} == {0.5}
    assert {t.state for t in sweep.trials} == {"infeasible", "complete"}
    assert {t.number for t in refused}.isdisjoint(t.number for t in fronts.members(sweep))
    assert {t.number for t in refused}.isdisjoint(final_front(again, spec))

    many = len(refused)
    assert f"{many} infeasible" in counts(sweep) and "failed" not in counts(sweep)
    assert headline(sweep).endswith(f", {many} infeasible")
    line = trial_line(refused[0], sweep)
    assert f"trial {refused[0].number} infeasible, " in line
    assert "s: macs=10 cannot be reached" in line
    show_end(sweep, Tracked("", ""))
    assert f"{many} of 12 trials infeasible: macs=10 cannot be" in capsys.readouterr().out
    write_sweep(sweep, spec.home)
    assert read_sweep(spec.home).trials == tuple(sweep.trials)


def test_a_file_that_fails_a_check_is_infeasible():
    result = failure(CheckFailedError("the file disagrees with the model"))
    assert (result.state, result.kind, result.violation) == ("infeasible", "check", 1.0)
    assert failure(LimitError("just", 0.0)).violation > 0
