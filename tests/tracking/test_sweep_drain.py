from __future__ import annotations

import base64
import json
import os
import signal
import zlib
from dataclasses import replace

import pytest

from compressbench.cli.sync import sync
from compressbench.core.errors import UserError
from compressbench.results import front as fronts
from compressbench.tracking import sweep_session
from compressbench.tracking.mlflow_charts import view_key, view_tag
from compressbench.tracking.mlflow_client import sweep_folders
from compressbench.tracking.outbox import CURSOR, Outbox
from compressbench.tracking.sweep_drain import SweepDrain
from compressbench.tracking.sweep_session import LoggedSweep
from compressbench.tracking.trackers import Local, NoTracking
from tests.sample_sweep import BITS, SPARSITY, make_sweep
from tests.tracking.tracked_sweep import (
    PARAMS,
    counts,
    log_sweep,
    log_trial,
    rows,
    store_at,
    tagged,
    volumes,
)


def test_a_sweep_lands_once_under_one_parent_by_its_own_process(home, capsys):
    folder = home / "multirun" / "größe"
    sweep = make_sweep(folder)
    session = log_sweep(Local(str(home)), folder, sweep)
    (folder / "a.json").write_text("{}")
    ended = session.finish("FINISHED", sweep, [folder / "a.json"])
    session.worker.communicate(timeout=120)
    assert session.worker.returncode == 0

    parent = rows(home, "select run_uuid, status from runs where name = 'digits'")
    assert [status for _, status in parent] == ["FINISHED"]
    nested = rows(home, "select value from tags where key = 'mlflow.parentRunId'")
    assert nested == [(parent[0][0],)] * 6
    assert rows(home, "select distinct status from runs") == [("FINISHED",)]
    steps = [(n + 1, value) for n, value in enumerate(fronts.history(sweep))]
    assert volumes(home) == [(n, pytest.approx(value)) for n, value in steps]
    assert tagged(home) == ["trial 0", "trial 3", "trial 4"]
    tags = dict(rows(home, f"select key, value from tags where run_uuid = '{parent[0][0]}'"))
    assert "3 of 6 complete trials" in tags["mlflow.note.content"]
    assert "runs/" in tags["mlflow.note.content"]  # links to the trials
    kept = {p.name for p in (home / "mlartifacts" / parent[0][0]).rglob("*") if p.is_file()}
    assert kept == {"front.html", "sweep.json", "a.json"}
    page = (home / "mlartifacts" / parent[0][0] / "artifacts" / "front.html").read_text()
    assert "workflowType" in page  # a click leads to the run
    if not ended.problem:
        assert parent[0][0] in ended.link
        assert f"viewStateShareKey={view_key('s-1')}" in ended.charts

    before = counts(home)
    for cursor in folder.rglob(CURSOR):
        cursor.unlink()  # as if all had been logged, but no cursor written
    assert sync([str(folder)]) == 0
    assert counts(home) == before
    assert tagged(home) == ["trial 0", "trial 3", "trial 4"]


def test_members_are_tagged_and_former_ones_are_not(home, by_hand):
    folder, tracker = home / "s", Local(str(home))
    sweep = make_sweep(folder)
    early = replace(sweep, trials=sweep.trials[1:2])
    session = log_sweep(tracker, folder, early)
    drain = SweepDrain(folder, store_at(home))
    assert drain.drain(False) == ""
    assert tagged(home) == ["trial 1"]
    assert drain.drain(False) == ""  # nothing new
    for number in (0, 2, 3, 4, 5):
        log_trial(tracker, folder, number)
    session.changed(sweep)
    assert drain.drain(False) == ""
    assert tagged(home) == ["trial 0", "trial 3", "trial 4"]
    session.worker.communicate()


def test_a_drain_that_died_anywhere_goes_on_without_double_entries(home, by_hand, monkeypatch):
    folder = home / "s"
    session = log_sweep(Local(str(home)), folder, make_sweep(folder))
    session.finish("FINISHED", make_sweep(folder))
    real, left = Outbox.mark, [0]

    class Killed(BaseException):
        pass

    def dying(self, target, state):
        left[0] -= 1
        if left[0] == 0:
            raise Killed  # MLflow has the operation, the cursor does not
        real(self, target, state)

    monkeypatch.setattr(Outbox, "mark", dying)
    deaths = 0
    while True:
        left[0] = 2
        try:
            assert SweepDrain(folder, store_at(home)).drain(True) == ""
        except Killed:
            deaths += 1
            continue
        break
    assert deaths > 10
    assert counts(home)["runs"] == 7
    assert len(volumes(home)) == 7
    loss = "select count(*) from metrics where key = 'history/train/loss'"
    assert rows(home, loss) == [(6 * 3,)]
    assert rows(home, "select distinct status from runs") == [("FINISHED",)]


@pytest.mark.long
def test_a_killed_process_is_started_again(home, monkeypatch):
    monkeypatch.setattr(sweep_session, "RESTART_SECONDS", 0.0)
    folder = home / "s"
    sweep = make_sweep(folder)
    session = log_sweep(Local(str(home)), folder, sweep)
    first = session.worker
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    session.changed(sweep)
    assert session.worker.pid != first.pid
    session.finish("FINISHED", sweep)
    session.worker.communicate(timeout=120)
    assert session.worker.returncode == 0
    assert counts(home)["runs"] == 7
    assert len(volumes(home)) == 7


def test_a_second_supervisor_joins_the_same_parent(home, by_hand):
    folder, elsewhere = home / "s", home / "other machine"
    sweep, tracker = make_sweep(folder), Local(str(home))
    session = log_sweep(tracker, folder, sweep)
    joined = tracker.open_sweep(folder, "digits", {}, {**PARAMS, "n_trials": 99}, "s-1")
    joined.changed(sweep)
    away = tracker.open_sweep(elsewhere, "digits", {}, PARAMS, "s-1")
    away.changed(replace(sweep, folder=str(elsewhere)))
    for store in (folder, elsewhere):
        assert SweepDrain(store, store_at(home)).drain(False) == ""
    assert counts(home)["runs"] == 7
    assert len(volumes(home)) == 7
    assert tagged(home) == ["trial 0", "trial 3", "trial 4"]
    assert rows(home, "select value from params where key = 'n_trials'") == [("8",)]
    for opened in (session, joined, away):
        opened.worker.communicate()


def test_hypervolumes_are_appended_once_also_after_a_restart(tmp_path, by_hand):
    tracker, sweep = Local(str(tmp_path)), make_sweep(tmp_path)
    first = tracker.open_sweep(tmp_path, "digits", {}, PARAMS, "s-1")
    first.changed(replace(sweep, trials=sweep.trials[:2]))
    second = tracker.open_sweep(tmp_path, "digits", {}, PARAMS, "s-1")
    for session in (second, first, second):
        session.changed(sweep)
    metrics = [
        m
        for o in Outbox(tmp_path).read()
        if o["do"] == "metrics"
        for m in o["metrics"]
        if m[0] == "front/hypervolume"
    ]
    assert [m[3] for m in metrics] == [1, 2, 3, 4, 5, 6, 7]
    assert [m[2] for m in metrics] == [1_700_000_000_000 + 1000 * n for n in range(7)]
    for session in (first, second):
        session.worker.communicate()


def test_the_front_is_not_shown_more_often_than_every_ten_seconds(tmp_path, by_hand, monkeypatch):
    monkeypatch.setattr(sweep_session, "FRONT_SECONDS", 10.0)
    clock = [100.0]
    monkeypatch.setattr(sweep_session.time, "monotonic", lambda: clock[0])
    sweep = make_sweep(tmp_path)
    session = Local(str(tmp_path)).open_sweep(tmp_path, "digits", {}, PARAMS, "s-1")
    shown = []
    for at, count in ((100, 1), (105, 2), (109, 4), (111, 4), (122, 4), (133, 5)):
        clock[0] = float(at)
        session.changed(replace(sweep, trials=sweep.trials[:count]))
        shown.append(sum(o["do"] == "front" for o in Outbox(tmp_path).read()))
    assert shown == [1, 1, 1, 2, 2, 3]
    session.worker.communicate()


def test_an_adopted_trial_goes_on_in_its_run(home, by_hand):
    folder, tracker = home / "s", Local(str(home))
    session = tracker.open_sweep(folder, "digits", {}, PARAMS, "s-1")
    log_trial(tracker, folder, 0, steps=2, finish=False)  # its worker dies here
    SweepDrain(folder, store_at(home)).drain(False)
    log_trial(tracker, folder, 0, steps=3)
    SweepDrain(folder, store_at(home)).drain(False)
    assert counts(home)["runs"] == 2
    onnx = "select step from metrics where key = 'size/onnx_bytes' order by step"
    assert rows(home, onnx) == [(0,), (1,), (2,)]
    assert rows(home, "select status from runs where name = 'trial 0'") == [("FINISHED",)]
    session.worker.communicate()


def test_what_is_refused_of_one_trial_does_not_hold_up_the_others(home, by_hand):
    folder, tracker = home / "s", Local(str(home))
    session = tracker.open_sweep(folder, "digits", {}, PARAMS, "s-1")
    log_trial(tracker, folder, 0, finish=False)
    bad = Outbox(folder / "trials" / "0", shared=True)
    bad.append({"do": "metrics", "metrics": [["a\nb", 1.0, 1, 0]], "stage": 1})
    log_trial(tracker, folder, 1)
    problem = SweepDrain(folder, store_at(home)).drain(False)
    assert problem.startswith("refuses: ")
    assert problem.endswith("(of 0)")
    assert rows(home, "select status from runs where name = 'trial 1'") == [("FINISHED",)]
    session.worker.communicate()


def test_nothing_stays_running_when_the_sweep_ends(home, by_hand):
    folder, tracker = home / "s", Local(str(home))
    session = tracker.open_sweep(folder, "digits", {}, PARAMS, "s-1")
    log_trial(tracker, folder, 0, finish=False)
    drain = SweepDrain(folder, store_at(home))
    assert drain.drain(ended=True) == ""  # the supervisor was killed
    assert rows(home, "select distinct status from runs") == [("KILLED",)]
    session.worker.communicate()


def test_sync_logs_trials_with_their_sweep(home, by_hand, monkeypatch, capsys):
    folder = home / "multirun" / "s"
    session = log_sweep(Local(str(home)), folder, make_sweep(folder))
    session.worker.communicate()
    monkeypatch.chdir(home)
    assert sync([]) == 0
    assert capsys.readouterr().out.count("operations logged") == 1
    assert counts(home)["runs"] == 7
    assert len(rows(home, "select * from tags where key = 'mlflow.parentRunId'")) == 6


def test_sweeps_of_an_experiment_are_found_here_or_fetched(home, by_hand, monkeypatch):
    folder = home / "s"
    session = log_sweep(Local(str(home)), folder, make_sweep(folder))
    SweepDrain(folder, store_at(home)).drain(False)
    session.worker.communicate()
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert sweep_folders("compressbench") == [folder]
    number = rows(home, "select experiment_id from experiments where name = 'compressbench'")
    assert sweep_folders(str(number[0][0])) == [folder]
    assert sweep_folders("absent") == []
    folder.rename(home / "gone")
    fetched = sweep_folders("compressbench")
    assert json.loads((fetched[0] / "sweep.json").read_text())["name"] == "digits <b>sweep"
    monkeypatch.chdir(home / "gone")
    assert sweep_folders("compressbench") == []


def test_the_saved_view_is_what_mlflow_reads():
    key, value = view_tag("s-1", "digits", "run", ("size/x", "val/y"), [SPARSITY, BITS], 5)
    assert key == "mlflow.sharedViewState." + view_key("s-1")
    tag = json.loads(value)
    assert tag["name"] == "digits"
    packed = tag["state"].removeprefix("deflate;")
    state = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert state["searchFilter"] == "tags.`mlflow.parentRunId` = 'run'"
    scatter, parallel = state["compareRunCharts"]
    assert (scatter["xaxis"]["key"], scatter["yaxis"]["key"]) == ("size/x", "val/y")
    assert parallel["selectedParams"] == [SPARSITY, BITS]
    assert parallel["selectedMetrics"] == ["size/x", "val/y"]
    assert {c["metricSectionId"] for c in state["compareRunCharts"]} == {
        state["compareRunSections"][0]["uuid"]
    }
    assert len(value) < 5000  # of a tag in MLflow


def test_a_folder_is_one_sweeps(tmp_path, by_hand):
    tracker = Local(str(tmp_path))
    tracker.open_sweep(tmp_path, "digits", {}, {}, "s-1").worker.communicate()
    with pytest.raises(UserError, match="holds the records of s-1, not of s-2"):
        tracker.open_sweep(tmp_path, "digits", {}, {}, "s-2")
    with pytest.raises(ValueError, match="a sweep's tag has letters"):
        tracker.open_sweep(tmp_path, "digits", {}, {}, "it's")
    log_trial(tracker, tmp_path, 0)
    with pytest.raises(UserError, match="holds the records of s-1, not of s-2"):
        tracker.start_trial(tmp_path / "trials" / "0", "trial 0", {}, {}, "s-2")


def test_without_tracking_a_sweep_writes_nothing(tmp_path):
    session = NoTracking().open_sweep(tmp_path, "n", {}, {}, "s")
    session.changed(make_sweep(tmp_path))
    assert session.finish("FINISHED", make_sweep(tmp_path)).problem == ""
    assert NoTracking().start_trial(tmp_path, "n", {}, {}, "s").run == ""
    assert not isinstance(session, LoggedSweep)
    assert not any(tmp_path.iterdir())
