from __future__ import annotations

import csv
import json
import math
import shlex
from dataclasses import replace

import pytest

from compressbench.cli.front import main
from compressbench.cli.main import guard
from compressbench.core.checked_files import json_with_digest
from compressbench.core.digests import file_digest
from compressbench.core.errors import UserError
from compressbench.results import front as fronts
from compressbench.results.front_table import markdown, raw_rows, text_rows
from compressbench.results.pareto import front_hypervolume
from compressbench.results.report_file import write_report
from compressbench.results.ship import Wanted, choose
from compressbench.results.sweep import Objective
from compressbench.results.sweep_file import SWEEP_FILE, read_sweep, write_sweep
from compressbench.tracking.find_sweeps import find
from tests.sample_sweep import BASELINE, BITS, OBJECTIVES, SPARSITY, make_sweep, make_trial


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A stored sweep below the working folder; trial 3 has its file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "multirun" / "digits"
    (folder / "trials" / "3").mkdir(parents=True)
    sweep = make_sweep(folder, name="digits")
    write_run(folder / "trials" / "3", sweep.trials[3].figures)
    write_sweep(sweep, folder)
    return folder


def write_run(folder, figures):
    """A run folder, as far as a front looks into it."""
    (folder / "model.onnx").write_bytes(b"onnx")
    sha256 = file_digest(folder / "model.onnx")
    stage = {"name": "quantize", "figures": dict(figures), "file_sha256": sha256}
    write_report({"final": "quantize", "stages": [stage], "files": {}}, folder)


def fails(arguments, capsys):
    """The one line of a command that is refused."""
    capsys.readouterr()
    assert guard(lambda: main([str(a) for a in arguments])) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_members_are_the_feasible_complete_trials_that_nothing_dominates():
    sweep = make_sweep()
    assert [t.number for t in fronts.members(sweep)] == [0, 3, 4]
    assert [t.number for t in fronts.candidates(sweep)] == [0, 1, 2, 3, 4]
    nan = make_trial(9, math.nan, 10)
    assert [t.number for t in fronts.members(replace(sweep, trials=(nan,)))] == []


def test_one_objective_has_a_best_trial():
    best = make_sweep(objectives=OBJECTIVES[:1])
    assert [t.number for t in fronts.members(best)] == [0]
    smallest = make_sweep(objectives=OBJECTIVES[1:])
    assert [t.number for t in fronts.members(smallest)] == [4]
    for sweep in (best, smallest):
        axes = fronts.axes(sweep)
        assert (axes.x.name, axes.y.name) == ("size/download_bytes", "val/accuracy")


def test_the_other_size_has_its_own_front():
    small_onnx = make_trial(8, 0.95, 300_000)
    small_onnx = replace(small_onnx, figures={**small_onnx.figures, "size/onnx_bytes": 100_000.0})
    sweep = make_sweep(trials=(*make_sweep().trials, small_onnx))
    assert [t.number for t in fronts.members(sweep)] == [0, 3, 4]
    onnx = fronts.with_size(sweep, "onnx")
    assert [o.name for o in onnx.objectives] == ["val/accuracy", "size/onnx_bytes"]
    assert [t.number for t in fronts.members(onnx)] == [8]  # as good, and smaller than all


def test_the_hypervolume_counts_all_complete_feasible_trials():
    sweep = make_sweep()
    accuracy, download = [0.95, 0.93, 0.80], [256e3, 128e3, 64e3]
    expected = front_hypervolume(accuracy, download, 1_024_000, 0.75)
    assert fronts.hypervolume(sweep) == pytest.approx(expected)
    assert expected == pytest.approx(20 * 2 + 18 + 5)
    onnx = fronts.with_size(sweep, "onnx")
    assert fronts.hypervolume(onnx) == pytest.approx(20 + 18 + 5)
    assert fronts.hypervolume(replace(sweep, floor=0.9)) == pytest.approx(5 * 2 + 3)
    assert fronts.hypervolume(replace(sweep, baseline={})) is None


def test_the_history_is_the_hypervolume_of_each_beginning():
    sweep = make_sweep()
    values = fronts.history(sweep)
    done = fronts.finished(sweep)
    assert [t.number for t in done] == [0, 1, 2, 3, 4, 5, 6]
    slow = [fronts.hypervolume(sweep, done[:n]) for n in range(1, 8)]
    assert values == pytest.approx(slow)
    late = replace(sweep, trials=(replace(sweep.trials[0], ended=2e9), *sweep.trials[1:]))
    assert [t.number for t in fronts.finished(late)][-1] == 0
    assert fronts.history(replace(sweep, baseline={})) == []


def test_noise_comes_from_rows_or_from_seeds():
    first = make_trial(0, 0.950, 200_000)
    second = make_trial(1, 0.949, 100_000)
    sweep = make_sweep(trials=(first, second))
    assert fronts.within_noise(sweep, fronts.members(sweep)) == set()
    rows = replace(sweep, validation_rows=1000)
    assert fronts.within_noise(rows, fronts.members(rows)) == {0}
    many = replace(sweep, validation_rows=10_000_000)
    assert fronts.within_noise(many, fronts.members(many)) == set()
    repeated = replace(first, repeats=({"val/accuracy": 0.944}, {"val/accuracy": 0.953}))
    seeds = replace(sweep, trials=(repeated, second))
    assert fronts.within_noise(seeds, fronts.members(seeds)) == {0}
    assert fronts.standard_error(repeated, "val/accuracy", sweep) == pytest.approx(0.004583, 1e-3)


def test_the_knee_is_above_the_floor():
    useless = [make_trial(10 + i, 0.10 - 0.001 * i, 1000 / 2**i) for i in range(5)]
    sweep = make_sweep()
    more = replace(sweep, trials=(*sweep.trials, *useless))
    assert fronts.knee(sweep, fronts.members(sweep)).number == 3
    assert fronts.knee(more, fronts.members(more)).number == 3
    only = replace(sweep, trials=tuple(useless))
    assert fronts.knee(only, fronts.members(only)) is None


def test_a_sweep_is_read_as_it_was_written(tmp_path):
    sweep = make_sweep(tmp_path, validation_rows=360, floor=0.5)
    nan = replace(sweep.trials[0], figures={"val/accuracy": math.nan, "size/onnx_bytes": 1.0})
    repeated = replace(sweep.trials[1], repeats=({"val/accuracy": 0.5},))
    sweep = replace(sweep, trials=(nan, repeated, *sweep.trials[2:]))
    write_sweep(sweep, tmp_path)
    again = read_sweep(tmp_path)
    assert again.trials[0].figures == {"size/onnx_bytes": 1.0}
    assert again.trials[1].repeats == ({"val/accuracy": 0.5},)
    assert again.trials[2:] == sweep.trials[2:]
    assert again.objectives == OBJECTIVES
    assert again.constraints == sweep.constraints
    assert (again.floor, again.validation_rows, again.baseline) == (0.5, 360, BASELINE)
    assert [p.name for p in tmp_path.iterdir()] == [SWEEP_FILE]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "not a sweep"),
        ({"schema_version": 9}, "another version"),
        ({"schema_version": 1, "trials": [{"number": 1, "state": "odd", "settings": {}}]}, "odd"),
    ],
)
def test_a_file_of_something_else_is_named(tmp_path, content, message):
    (tmp_path / SWEEP_FILE).write_bytes(json_with_digest(content))
    with pytest.raises(UserError, match=message):
        read_sweep(tmp_path)


def test_a_file_that_cannot_be_written_names_path_and_bytes(tmp_path):
    with pytest.raises(UserError, match=r"sweep\.json: cannot write \d+ bytes: No such file"):
        write_sweep(make_sweep(), tmp_path / "absent")


def test_the_command_shows_the_front_and_writes_it(stored, capsys):
    names = {kind: f"out.{kind}" for kind in ("csv", "json", "html", "png")}
    options = [part for kind, name in names.items() for part in (f"--{kind}", name)]
    assert main(["digits", "--budget", "130kB", *options]) == 0
    out = capsys.readouterr().out
    assert "digits: 3 of 6 complete trials are on the front, hypervolume 63.0" in out
    assert "baseline" in out
    assert f"file to ship: {stored}/trials/3/model.onnx" in out
    assert f"compressbench replay {shlex.quote(str(stored))}/trials/3/recipe.yaml" in out
    with (stored.parents[1] / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0", "3", "4"]
    assert float(rows[1]["size/download_bytes"]) == 128_000
    assert rows[1][BITS] == "8"
    report = json.loads((stored.parents[1] / "out.json").read_text())
    assert report["sweeps"][0]["front/hypervolume"] == pytest.approx(63)
    assert [row["trial"] for row in report["front"]] == [0, 3, 4]
    page = (stored.parents[1] / "out.html").read_text()
    assert "</b> to ship</span>" in page
    assert (stored.parents[1] / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("wanted", "number"),
    [
        (Wanted(budget_bytes=256_000), 0),
        (Wanted(budget_bytes=255_999), 3),
        (Wanted(minimum=0.93), 3),
        (Wanted(minimum=0.5), 4),
        (Wanted(minimum=0.9, budget_bytes=300_000), 0),
        (Wanted(knee=True), 3),
        (Wanted(knee=True, budget_bytes=65_000), 4),
    ],
)
def test_which_file_to_ship(wanted, number):
    assert choose([make_sweep()], wanted).trial.number == number


def test_the_file_to_ship_is_the_best_of_all_sweeps():
    better = make_sweep("other", name="other", trials=(make_trial(0, 0.94, 128_000),))
    chosen = choose([make_sweep(), better], Wanted(budget_bytes=130_000))
    assert chosen.sweep.name == "other"
    assert choose([make_sweep(), better], Wanted(knee=True)).sweep.name == "other"


def test_a_sweep_is_found_by_folder_file_and_name(stored):
    for name in (str(stored), str(stored / SWEEP_FILE), "digits", "multirun/digits"):
        assert find(name)[0].folder == str(stored)


def test_what_cannot_be_answered_is_one_line(stored, capsys):
    assert "existing sweeps: digits" in fails(["nothing"], capsys)
    assert "--budget must be a size such as 100kB" in fails([stored, "--budget", "ten"], capsys)
    assert "the smallest is trial 4" in fails([stored, "--budget", "10kB"], capsys)
    assert "the best is trial 0" in fails([stored, "--at-least", "0.99"], capsys)
    assert "number such as 0.91" in fails([stored, "--min-accuracy", "good"], capsys)
    assert "--csv absent/x.csv" in fails([stored, "--csv", "absent/x.csv"], capsys)
    other = stored.parent / "other"
    other.mkdir()
    speed = (OBJECTIVES[0], Objective("latency/speedup", "maximize"))
    write_sweep(make_sweep(other, name="digits", objectives=speed), other)
    assert "different objectives" in fails([stored, other], capsys)
    assert "2 sweeps are named 'digits'" in fails(["digits"], capsys)
    write_sweep(make_sweep(other, trials=make_sweep().trials[6:]), other)
    assert "1 failed, 1 running" in fails([other], capsys)


def test_nothing_stored_says_where_it_looked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "searched runs/, multirun/, sweeps/" in fails(["x"], capsys)


def test_rows_have_raw_figures_and_text_has_units():
    sweep = make_sweep(validation_rows=500)
    rows = raw_rows(sweep)
    assert rows[1]["knee"] is True
    assert rows[1]["standard_error"] == pytest.approx(0.0117, abs=1e-4)
    assert rows[1][SPARSITY] == pytest.approx(0.6)
    text = text_rows(sweep)
    assert text[0]["val accuracy"] == "95.00 %"
    assert text[2]["val accuracy"] == "93.00 % ± 1.16"
    assert text[2]["download"] == "128 kB"
    assert text[2]["download smaller"] == "7.03×"
    assert text[2]["prune.sparsity"] == "0.6"
    assert text[2][""] == "knee"
    assert "test accuracy" not in text[0]


def test_the_note_links_members_and_fits():
    note = markdown(make_sweep(), {3: "http://host/#/run"}, "#/front.html")
    assert "[3](http://host/#/run)" in note
    assert "| 0 |" in note
    assert note.startswith("**[See the front](#/front.html)**: digits")
    many = [make_trial(i, 0.95 - 0.001 * i, 1000.0 - i) for i in range(60)]
    long = markdown(make_sweep(trials=tuple(many)), {}, "#/front.html")
    assert "and 30 more members" in long
    assert len(long) < 7900


def test_a_third_objective_is_a_column_and_counts():
    three = (*OBJECTIVES, Objective("latency/p50_ms", "minimize"))
    slow = make_trial(0, 0.95, 100_000)
    fast = make_trial(1, 0.90, 110_000)
    trials = tuple(
        replace(t, figures={**t.figures, "latency/p50_ms": ms})
        for t, ms in ((slow, 2.0), (fast, 1.0))
    )
    sweep = make_sweep(objectives=three, trials=trials)
    assert len(fronts.members(sweep)) == 2
    assert text_rows(sweep)[1]["latency/p50_ms"] == "1.00 ms"
