"""Figures and files of a run or sweep that were edited afterwards are not taken for measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from random import Random

import pytest

import compressbench
from compressbench.cli.front import main as front
from compressbench.core.checked_files import json_with_digest, read_json_with_digest
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.results.report_file import read_report, write_report
from compressbench.results.sweep_file import SWEEP_FILE, read_sweep, write_sweep
from tests.end_to_end.running import run_here
from tests.sample_sweep import make_sweep, make_trial


@pytest.fixture
def shipped(cheap_run, tmp_path):
    """A copy of the folder of a finished run."""
    return shutil.copytree(cheap_run[0].folder, tmp_path / "run")


@pytest.fixture
def sweep(shipped, tmp_path):
    """The folder of a sweep whose only trial is that run."""
    figures = read_report(shipped)["stages"][-1]["figures"]
    trial = replace(make_trial(0, 0.5, 1), figures=figures, folder=str(shipped))
    baseline = {"val/accuracy": 0.5, "size/download_bytes": 1e6, "size/onnx_bytes": 1e6}
    write_sweep(make_sweep(tmp_path, trials=(trial,), baseline=baseline), tmp_path)
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def flip(path, random):
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def test_row_31_an_edited_sweep_is_refused(sweep):
    assert front([str(sweep), "--knee"]) == 0
    edit(sweep / SWEEP_FILE, '"feasible": true', '"feasible":  true')
    with pytest.raises(UserError, match=r"sweep\.json: its digest differs: it was damaged or edit"):
        front([str(sweep)])


@pytest.mark.parametrize("name", [SWEEP_FILE, "run/report.json"])
def test_row_31_no_flipped_bit_of_a_record_is_taken(sweep, name):
    random, path = Random(1), sweep / name
    whole = path.read_bytes()
    for _ in range(100):
        flip(path, random)
        with pytest.raises(UserError, match="its digest differs"):
            read_sweep(sweep) if name == SWEEP_FILE else read_report(path.parent)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"figures": {"val/accuracy": 1.5}}, "val/accuracy of trial 0 is 1.5"),
        ({"figures": {"size/onnx_bytes": -1}}, "size/onnx_bytes of trial 0 is -1"),
        ({"figures": {"val/accuracy": True}}, "val/accuracy of trial 0 is True"),
        ({"figures": {"val/accuracy": "0.9"}}, "not a sweep"),
        ({"figures": [1]}, "not a sweep"),
        ({"number": -1}, "trial -1 has no number from 0"),
        ({"number": 0.5}, "trial 0.5 has no number from 0"),
        ({"folder": 3}, "folder of trial 0 is 3"),
        ({"settings": "x"}, "settings of trial 0 is 'x'"),
        ({"repeats": ({"val/accuracy": 2},)}, "val/accuracy of trial 0 is 2"),
    ],
)
def test_row_31_a_forged_sweep_is_refused_for_what_cannot_be(sweep, change, message):
    stored = read_json_with_digest(sweep / SWEEP_FILE)
    stored["trials"][0] |= change
    (sweep / SWEEP_FILE).write_bytes(json_with_digest(stored))
    with pytest.raises(UserError, match=message):
        front([str(sweep)])


def test_row_31_two_trials_of_one_number_are_refused(sweep):
    stored = read_sweep(sweep)
    write_sweep(replace(stored, trials=stored.trials * 2), sweep)
    with pytest.raises(UserError, match="two trials have one number"):
        front([str(sweep)])


def test_row_31_what_ships_from_a_forged_sweep_is_compared_with_what_was_measured(sweep):
    stored = read_sweep(sweep)
    (trial,) = stored.trials
    better = replace(trial, figures={**trial.figures, "val/accuracy": 0.99})
    write_sweep(replace(stored, trials=(better,)), sweep)
    with pytest.raises(CheckFailedError, match=r"val/accuracy is 0\.99 in the sweep, but 0\.49"):
        front([str(sweep), "--knee"])


def test_row_31_a_swapped_model_does_not_ship_as_the_measured_one(sweep, shipped):
    (shipped / "model.onnx").write_bytes(b"another")
    with pytest.raises(CheckFailedError, match=r"model\.onnx is not the file that was measured"):
        front([str(sweep), "--knee"])
    with pytest.raises(CheckFailedError, match=r"model\.onnx is not the file that was measured"):
        compressbench.load(shipped)


def test_row_31_an_edited_report_is_refused(shipped, tmp_path):
    edit(shipped / "report.json", '"finished"', '"finishes"')
    with pytest.raises(UserError, match=r"report\.json: its digest differs"):
        compressbench.load(shipped)
    done = run_here(["explain", str(shipped)], tmp_path, tmp_path / "store")
    assert (done.code, "its digest differs" in done.line) == (1, True)


def test_row_31_a_report_of_no_run_is_refused(shipped):
    report = read_report(shipped)
    write_report({**report, "final": "none"}, shipped)
    with pytest.raises(CheckFailedError, match="not the file that was measured"):
        compressbench.load(shipped)
    assert json.loads((shipped / "report.json").read_text())["sha256"]
