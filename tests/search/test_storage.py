"""What a sweep stores: identity, constraints, values, and how it is read again."""

from __future__ import annotations

import sqlite3

import pytest
from optuna.trial import TrialState

from compressbench.core.errors import CheckFailedError, TransientError, UserError
from compressbench.results.sweep import Constraint, Objective
from compressbench.search.result import Result
from compressbench.search.samplers.by_number import ByNumber
from compressbench.search.snapshot import as_sweep, list_sweeps, read_sweep
from compressbench.search.storage import open_storage
from compressbench.search.trial import failure
from compressbench.search.worker import _same
from compressbench.search.worker_loop import work
from tests.search.noop import answer, make_spec, make_storage, settings_of

BOUND = Constraint("val/accuracy", True, 0.9)


def of_a_full_disk() -> UserError:
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise UserError("cannot write x") from error
    except UserError as error:
        return error


def described(spec):
    from compressbench.search.command import _describe

    return _describe(spec, {})


def test_a_sweep_reads_back_as_it_was_written(tmp_path, monkeypatch):
    spec = make_spec(tmp_path / "sweeps" / "noop", 12, constraints=(BOUND,))
    storage = make_storage(spec)

    def perform(trial, lease):
        result = answer(trial, lease)
        if trial.number == 3:
            return failure(MemoryError("bits must be even"))
        if trial.number == 4:
            return Result("pruned", reason="hopeless")
        return result

    work(storage, spec, "w", perform)
    storage.leases.finish("repeat/0/0", "w", Result("complete", {"test/accuracy": 0.5}).dump())
    storage.leases.finish("repeat/0/1", "w", Result("complete", {"val/accuracy": 0.6}).dump())
    described(spec)
    monkeypatch.chdir(tmp_path)
    sweep = read_sweep("noop")
    assert [p.name for p in list_sweeps()] == ["noop"]
    assert read_sweep(tmp_path / "sweeps" / "noop") == sweep
    assert [t.number for t in sweep.trials] == list(range(12))
    assert [t.state for t in sweep.trials[2:5]] == ["complete", "failed", "pruned"]
    assert sweep.trials[3].reason == "out of memory: bits must be even"
    for trial in sweep.trials[:3]:
        stored = storage.study.trials[trial.number]
        assert dict(trial.settings) == pytest.approx(stored.params)
        assert [trial.figures[o.name] for o in spec.objectives] == stored.values
        assert trial.feasible == (trial.figures["val/accuracy"] >= 0.9)
        assert stored.constraints == {
            "refused": -1.0,
            "val/accuracy >= 0.9": pytest.approx(0.9 - trial.figures["val/accuracy"]),
        }
    assert sweep.trials[0].figures["test/accuracy"] == 0.5
    assert [dict(r) for r in sweep.trials[0].repeats] == [{"val/accuracy": 0.6}]
    assert sweep.baseline == {"val/accuracy": 1.0}
    best = {t.number for t in storage.study.best_trials}
    assert all(sweep.trials[n].feasible for n in best)


def test_no_sweep_no_storage(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nothing: no such sweep; sweeps/ has: none"):
        read_sweep("nothing")
    with pytest.raises(UserError, match="no sweep"):
        open_storage(tmp_path, None, "noop", 1.0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://u:secret@host/x", r"must be null or postgresql://USER@HOST/DATABASE"),
        ("sweep.db", "must be null or postgresql"),
    ],
)
def test_a_storage_of_another_kind_is_refused_without_its_password(tmp_path, url, message):
    with pytest.raises(UserError, match=message) as caught:
        open_storage(tmp_path, url, "noop", 1.0, objectives=[Objective("a", "maximize")])
    assert "secret" not in str(caught.value)


def test_the_database_is_in_wal_mode(tmp_path):
    spec = make_spec(tmp_path / "noop")
    make_storage(spec)
    with sqlite3.connect(spec.home / "sweep.db") as database:
        assert database.execute("pragma journal_mode").fetchone() == ("wal",)


def test_the_same_settings_are_answered_from_the_store(tmp_path):
    known = {"x": 0.25, "bits": 4}
    spec = make_spec(tmp_path / "noop", 3, starts=(known, known, {"x": 0.5, "bits": 4}))
    storage = make_storage(spec)
    asked = []

    def perform(trial, lease):
        settings = settings_of(trial)
        same = _same(storage, trial.number, settings)
        asked.append(same is None)
        return same or answer(trial, lease)

    work(storage, spec, "w", perform)
    assert asked == [True, False, True]
    first, second, third = storage.trials()
    assert first.values == second.values != third.values
    sweep = as_sweep(storage, described(spec), spec.home)
    assert sweep.trials[1].reason == "same settings as trial 0"


def test_settings_by_number_do_not_depend_on_who_asks(tmp_path):
    """Two desks in turn, and one alone, with another order of parameters."""
    spec = make_spec(tmp_path / "one", 4)
    storage, other = make_storage(spec), make_storage(spec, create=False)
    for n in range(4):
        d = (storage, other)[n % 2]
        work(d, make_spec(spec.home, n + 1), "w", answer)
    alone = make_spec(tmp_path / "two", 4)
    single = make_storage(alone)
    work(single, alone, "w", answer)
    assert [t.params for t in storage.trials()] == [t.params for t in single.trials()]
    assert len({t.params["x"] for t in single.trials()}) == 4
    single.study.sampler = ByNumber(4)
    work(single, make_spec(alone.home, 6), "w", answer)
    single.study.sampler = ByNumber(3)
    assert {t.params["x"] for t in single.trials()[4:]}.isdisjoint(
        {t.params["x"] for t in storage.trials()}
    )


@pytest.mark.parametrize(
    ("error", "state", "kind", "reason"),
    [
        (UserError("no"), "infeasible", "user", "no"),
        (CheckFailedError("NaN"), "infeasible", "check", "NaN"),
        (TransientError("a.csv changed"), "failed", "check", "a.csv changed"),
        (of_a_full_disk(), "failed", "user", "cannot write x"),
        (MemoryError(), "failed", "memory", "out of memory: MemoryError"),
        (RuntimeError("CUDA out of memory. Tried\nmore"), "failed", "memory",
         "CUDA out of memory. Tried"),
        (ValueError("odd"), "failed", "bug", "ValueError: odd"),
    ],
)  # fmt: skip
def test_what_a_trial_failed_of(error, state, kind, reason):
    result = failure(error)
    assert (result.state, result.kind) == (state, kind)
    assert result.reason.startswith(reason)


def test_a_figure_that_was_not_taken_is_no_value(tmp_path):
    spec = make_spec(tmp_path / "noop", 1, constraints=(BOUND,))
    result = Result("complete", {"size/download_bytes": 3.0})
    assert result.values(spec.objectives) is None
    assert result.violations((BOUND,)) == {"val/accuracy >= 0.9": 1.0}
    storage = make_storage(spec)
    work(storage, spec, "w", lambda trial, lease: failure(MemoryError()))
    assert storage.trials()[0].state is TrialState.FAIL
