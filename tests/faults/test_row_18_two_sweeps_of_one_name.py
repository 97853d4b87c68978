"""Two sweeps of one name: another space is refused, the same one is joined, with one total."""

from __future__ import annotations

import json
import subprocess
import threading

import pytest
from optuna.trial import TrialState

from compressbench.core.errors import UserError
from compressbench.results.sweep import Constraint, Objective
from compressbench.search.fingerprint import CONTENTS, check_same, fingerprint
from compressbench.search.space import parse
from compressbench.search.worker_loop import work
from tests.end_to_end.running import command, environment
from tests.end_to_end.test_sweeps import SPACE, TINY, trials_of
from tests.search.noop import answer, make_spec, make_storage

BOUND = Constraint("val/accuracy", True, 0.9)


@pytest.fixture
def spec(tmp_path):
    return make_spec(tmp_path / "a sweep")


@pytest.fixture
def storage(spec):
    return make_storage(spec)


def test_row_18_a_fingerprint_names_what_differs():
    space = parse(["recipe.stages.q.bits=choice(2,8)", "recipe.stages.p.s=interval(0.1,0.9)"], [])[
        0
    ]
    config = {"recipe": {"stages": {"q": {"bits": 8, "more": 1}}}, "model": {"width": 8},
              "dataset": {}, "trainer": {}, "seed": 0, "opset": 25}  # fmt: skip
    objectives = [Objective("a", "maximize")]
    first = fingerprint(space, objectives, (), {"": config})
    assert json.loads(json.dumps(first)) == first
    check_same("x", first, first)
    config["recipe"]["stages"]["q"]["bits"] = 4  # searched: its value does not count
    check_same("x", first, fingerprint(space, objectives, (), {"": config}))
    changed = {**config, "model": {"width": 16}}
    with pytest.raises(UserError, match=r"x is already another sweep.*model.width 8 → 16; give"):
        check_same("x", first, fingerprint(space, objectives, (), {"": changed}))
    with pytest.raises(UserError, match=r"search.constraints none → val/accuracy >= 0.9"):
        check_same("x", first, fingerprint(space, objectives, (BOUND,), {"": config}))
    read = {**first, CONTENTS: "3fa9"}
    check_same("x", first, read)  # a sweep from before contents were noted
    with pytest.raises(UserError, match="dataset contents 3fa9 → 77ab"):
        check_same("x", read, {**first, CONTENTS: "77ab"})
    narrower = parse(["recipe.stages.q.bits=choice(2,4)", space[1].key + "=interval(0.1,0.9)"], [])
    with pytest.raises(UserError, match=r"bits choice\(2,8\) → choice\(2,4\)"):
        check_same("x", first, fingerprint(narrower[0], objectives, (), {"": config}))


def test_row_18_n_trials_is_a_total(spec, storage):
    work(storage, make_spec(spec.home, 3), "w", answer)
    assert len(storage.trials()) == 3
    work(storage, make_spec(spec.home, 3), "w", answer)
    assert len(storage.trials()) == 3
    work(storage, make_spec(spec.home, 7), "w", answer)
    assert [t.state for t in storage.trials()] == [TrialState.COMPLETE] * 7


def test_row_18_threads_and_connections_never_make_one_trial_too_many(spec, storage):
    """The owners are of another machine: alive as long as their leases."""
    desks = [make_storage(spec, create=False) for _ in range(4)]
    threads = [threading.Thread(target=work, args=(d, spec, f"elsewhere-{i}-1", answer))
               for i, d in enumerate(desks)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trials = storage.trials()
    assert [t.number for t in trials] == list(range(spec.n_trials))
    assert {t.state for t in trials} == {TrialState.COMPLETE}


def test_row_18_two_starts_at_once_make_one_study(spec):
    made = []
    threads = [threading.Thread(target=lambda: made.append(make_storage(spec))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [storage.study._study_id for storage in made] == [1] * 4


@pytest.mark.long
def test_row_18_two_terminals_share_one_sweep(tmp_path):
    store, words = tmp_path / "store", [*TINY, *SPACE, "search.n_trials=8"]
    pair = [subprocess.Popen(command(*words), cwd=tmp_path, env=environment(store),
                             stdout=subprocess.PIPE, text=True) for _ in range(2)]  # fmt: skip
    for process in pair:
        out, _ = process.communicate(timeout=240)
        assert process.returncode == 0, out
    assert [t.state for t in trials_of(tmp_path)] == ["complete"] * 8
    assert len(list(tmp_path.glob("sweeps/tiny/trials/*/report.json"))) >= 6
