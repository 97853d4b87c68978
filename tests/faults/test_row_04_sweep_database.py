"""The database of a sweep: a torn tail is no harm, damage is set aside, lost trials come back."""

from __future__ import annotations

import random
import shutil
import sqlite3

import pytest
from optuna.trial import TrialState

from compressbench.core.errors import LimitError, UserError
from compressbench.results.sweep import Objective
from compressbench.results.sweep_file import write_sweep
from compressbench.search import storage as storages
from compressbench.search.command import _describe, _identify
from compressbench.search.rebuild import add_lost_trials
from compressbench.search.snapshot import as_sweep
from compressbench.search.storage import open_storage
from compressbench.search.trial import failure
from compressbench.search.worker_loop import work, work_folder
from tests.end_to_end.running import run_here
from tests.end_to_end.test_sweeps import SPACE, TINY, trials_of
from tests.search.noop import answer, make_spec, make_storage, settings_of

N = 12


def perform(trial, lease):
    """One trial of each kind of end."""
    if trial.number == 3:
        settings_of(trial)
        return failure(LimitError("macs=1 cannot be reached", 0.5))
    return failure(MemoryError("too large")) if trial.number == 4 else answer(trial, lease)


def state_of(storage, spec):
    return as_sweep(storage, _describe(spec, storage.study.user_attrs), spec.home)


@pytest.fixture
def spec(tmp_path):
    """A sweep with all its trials, and its last state in sweep.json."""
    spec = make_spec(tmp_path / "sweep", N)
    storage = make_storage(spec)
    work(storage, spec, "w", perform)
    write_sweep(state_of(storage, spec), spec.home)
    storage.engine.dispose()
    return spec


def overwritten(path):
    path.write_bytes(b"no database at all" * 99)


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_zeros(path):
    content = bytearray(path.read_bytes())
    content[4096 : 4096 * 3] = bytes(4096 * 2)
    path.write_bytes(content)


def with_another_figure(path):
    """SQLite has no digest of its rows."""
    with sqlite3.connect(path) as connection:
        change = "replace(result, 'accuracy\": 0', 'accuracy\": 1')"
        connection.execute(f"UPDATE compressbench_tasks SET result = {change}")
    connection.close()


def deleted(path):
    path.unlink()


@pytest.mark.parametrize(
    "damage", [overwritten, cut_in_half, with_zeros, with_another_figure, deleted]
)
def test_row_04_a_damaged_database_is_set_aside_and_its_trials_come_back(spec, damage, caplog):
    before = state_of(make_storage(spec, create=False), spec)
    database = spec.home / "sweep.db"
    for suffix in ("-wal", "-shm"):
        (spec.home / f"sweep.db{suffix}").unlink(missing_ok=True)
    damage(database)
    storage = make_storage(spec)
    add_lost_trials(storage, spec)
    assert state_of(storage, spec) == before
    assert storage.trials()[3].constraints["refused"] == 0.5
    told = [record.message for record in caplog.records]
    aside = damage is not deleted
    assert any("sweep.db.damaged-1" in line for line in told) == aside
    assert (spec.home / "sweep.db.damaged-1").is_file() == aside
    assert f"lacked {N} of {N} trials: added from sweep.json" in told[-1]
    work(storage, make_spec(spec.home, N + 3), "w", answer)
    assert len(storage.trials()) == N + 3, "the total budget is kept"


@pytest.mark.parametrize("seed", range(3))
def test_row_04_a_torn_tail_of_the_journal_is_left_out(tmp_path, seed):
    """SQLite checks each frame of its journal, so a torn one ends it; nothing needs repair."""
    spec = make_spec(tmp_path / "sweep", N)
    storage = make_storage(spec)
    work(storage, spec, "w", answer)
    write_sweep(state_of(storage, spec), spec.home)
    torn = make_spec(tmp_path / "torn", N)
    shutil.copytree(spec.home, torn.home)  # as a machine without power leaves it
    journal = torn.home / "sweep.db-wal"
    length = journal.stat().st_size
    assert length > 50_000
    cut = random.Random(seed).randrange(length // 4, length)
    journal.write_bytes(journal.read_bytes()[:cut])
    again = make_storage(torn)
    assert 0 < again.created() <= N
    add_lost_trials(again, torn)
    work(again, torn, "w", answer)
    assert [t.number for t in again.trials()] == list(range(N))
    assert {t.state for t in again.trials()} == {TrialState.COMPLETE}
    found, wanted = (state_of(s, spec).trials for s in (again, storage))
    assert [t.settings for t in found] == [t.settings for t in wanted]


def test_row_04_a_trial_that_ran_when_the_database_was_lost_runs_again(tmp_path):
    spec = make_spec(tmp_path / "sweep", 3)
    storage = make_storage(spec)
    work(storage, make_spec(spec.home, 2), "w", answer)
    running = storage.new_trial(3, "w", ())
    wanted = settings_of(running)
    write_sweep(state_of(storage, spec), spec.home)
    storage.engine.dispose()
    overwritten(spec.home / "sweep.db")
    again = make_storage(spec)
    add_lost_trials(again, spec)
    work(again, spec, "w", answer)
    assert [t.state for t in again.trials()] == [TrialState.COMPLETE] * 3
    assert again.trials()[2].params == pytest.approx(wanted)


def test_row_04_files_of_a_lost_trial_make_way_for_those_of_its_number(tmp_path):
    spec = make_spec(tmp_path / "sweep", 1)
    old = spec.home / "trials" / "0"
    old.mkdir(parents=True)
    (old / "report.json").write_text("lost")

    def writes(trial, lease):
        folder = work_folder(spec, trial.number, "w")
        folder.mkdir(parents=True)
        (folder / "report.json").write_text("new")
        return answer(trial, lease)

    work(make_storage(spec), spec, "w", writes)
    assert (old / "report.json").read_text() == "new"


def test_row_04_the_identity_of_a_lost_database_is_kept(spec):
    storage = make_storage(spec)
    first = _identify(storage, spec_of_a_recipe(spec), {"search.space.x": "a"}, 1)
    _describe(first, storage.study.user_attrs)
    storage.engine.dispose()
    (spec.home / "sweep.db").unlink()
    with pytest.raises(UserError, match=r"is already another sweep.*search.space.x a → b"):
        _identify(make_storage(spec), first, {"search.space.x": "b"}, 1)
    assert _identify(make_storage(spec), first, {"search.space.x": "a"}, 2) == first


def spec_of_a_recipe(spec):
    from compressbench.config.groups import config_folder

    return make_spec(spec.home, N, fixed=("trainer.threads=1",), conf=(str(config_folder()),))


def test_row_04_a_locked_or_unwritable_database_is_one_line(spec, tmp_path, monkeypatch):
    monkeypatch.setattr(storages, "_BUSY_SECONDS", 0.2)
    monkeypatch.setattr("compressbench.search.damaged.BUSY_SECONDS", 0.2)
    holder = sqlite3.connect(spec.home / "sweep.db", isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(UserError, match=r"sweep\.db: database is locked") as caught:
        make_storage(spec)
    assert "\n" not in str(caught.value)
    holder.close()
    assert len(make_storage(spec).trials()) == N
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        open_storage(tmp_path / "file", None, "n", 1.0, objectives=[Objective("a", "maximize")])


def test_row_04_reading_a_damaged_database_is_one_line(spec):
    overwritten(spec.home / "sweep.db")
    with pytest.raises(UserError, match=r"sweep\.db: file is not a database"):
        open_storage(spec.home, None, "noop", 1.0)


@pytest.mark.long
def test_row_04_the_same_command_goes_on_after_the_database_was_damaged(tmp_path):
    store, words = tmp_path / "store", [*TINY, *SPACE, "search.n_trials=3"]
    assert run_here(words, tmp_path, store).code == 0
    before = trials_of(tmp_path)
    cut_in_half(tmp_path / "sweeps" / "tiny" / "sweep.db")
    done = run_here([*words[:-1], "search.n_trials=4"], tmp_path, store)
    assert done.code == 0, done.err
    after = trials_of(tmp_path)
    assert len(after) == 4
    for old, new in zip(before, after, strict=False):
        assert (old.settings, old.state, old.folder) == (new.settings, new.state, new.folder)
    other = run_here([*TINY, SPACE[0], *SPACE[2:]], tmp_path, store)
    assert other.code == 1 and "is already another sweep" in other.line
    assert "Traceback" not in done.err
