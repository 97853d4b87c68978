from __future__ import annotations

import csv
import getpass
import hashlib
import json
import platform
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from compressbench.core.atomic import write_json_atomic
from compressbench.core.types import Measurement, Split
from compressbench.engine.environment import environment
from compressbench.measure import figures as measure
from compressbench.results.report_file import read_report, write_report
from compressbench.results.run_report import (
    build_report,
    comparison_rows,
    growth_warning,
    markdown,
    shrink_warning,
    table,
    write_tables,
)
from tests.sample_steps import make_info, make_step, make_steps, warned


def test_report_is_json_and_says_what_ran(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    report = build_report(make_info(tmp_path), make_steps(), "finished")
    write_report(report, tmp_path)
    assert read_report(tmp_path) == report
    assert json.loads((tmp_path / "report.json").read_text()).keys() == {*report, "sha256"}
    assert report["schema_version"] == 1
    assert (report["baseline"], report["final"]) == ("train", "quantize")
    assert [s["hit"] for s in report["stages"]] == [True, False, False]
    assert report["stages"][1]["settings"]["sparsity"] == 0.5
    assert report["stages"][1]["coverage"][0]["touched"] == 50
    digest = hashlib.sha256(b"onnx").hexdigest()
    assert report["files"] == {"model.onnx": {"bytes": 4, "sha256": digest}}
    assert report["in_front"] is True


def test_ratios_are_against_the_baseline(tmp_path):
    rows = comparison_rows(build_report(make_info(tmp_path), make_steps(), "finished"))
    assert [r["onnx_smaller"] for r in rows] == [1.0, 1.0, 4.0]
    assert [r["download_smaller"] for r in rows] == [1.0, 2.0, 9.0]
    assert [r["faster"] for r in rows] == [1.0, 1.25, 2.0]
    assert [r["store"] for r in rows] == ["hit", "miss", "miss"]


def test_test_figures_only_of_the_baseline_and_the_last(tmp_path):
    rows = comparison_rows(build_report(make_info(tmp_path), make_steps(), "finished"))
    assert [r["test"] is None for r in rows] == [False, True, False]


def test_a_figure_that_was_not_taken_is_a_dash_never_a_number(tmp_path):
    steps = make_steps()
    steps[2] = replace(steps[2], measurement=Measurement({"val/accuracy": float("nan")}))
    report = build_report(make_info(tmp_path), steps, "finished")
    write_json_atomic(tmp_path / "report.json", report)  # refuses NaN
    last = table(report)[2]
    taken = {name for name, text in last.items() if text != "–"}
    assert taken == {"stage", "time", "store"}


@pytest.mark.parametrize(
    ("before", "after", "warns"), [(900, 899, False), (900, 900, True), (900, 901, True)]
)
def test_a_prune_that_does_not_shrink_the_download_is_called_out(before, after, warns):
    first, second = make_step(0, 1000, before, 0.9, 1.0), make_step(1, 10, after, 0.9, 1.0)
    warning = shrink_warning(first, second)
    assert (warning is not None) == warns
    assert shrink_warning(second, first) is None  # a train stage may grow
    for kind in ("prunechannels", "quantizeaware", "codebook"):
        assert (shrink_warning(first, replace(second, kind=kind)) is not None) == warns
    assert shrink_warning(first, replace(second, kind="finetune")) is None


@pytest.mark.parametrize(("after", "warns"), [(999, False), (1000, False), (1001, True)])
def test_a_quantized_file_larger_than_the_float_one_is_called_out(tmp_path, after, warns):
    first, second = make_step(0, 1000, 900, 0.9, 1.0), make_step(2, after, 800, 0.9, 1.0)
    warning = growth_warning(first, second)
    assert (warning is not None) == warns
    assert growth_warning(first, replace(second, kind="prune")) is None
    last = replace(second, warnings=(warning,) if warning else ())
    assert build_report(make_info(tmp_path), [first, last], "finished")["in_front"] == (not warns)


def _guessing():
    """What the measurement says of a model that always answers class 0 of two."""
    data = SimpleNamespace(
        split=lambda name: Split(torch.zeros(4, 1, 1, 1), torch.tensor([0, 0, 1, 1])),
        spec=SimpleNamespace(num_classes=2, metric="accuracy", task=None),
    )
    return measure._chance({"val/accuracy": 0.5}, data)[0]


def test_a_loud_warning_keeps_the_run_out_of_any_front(tmp_path):
    first, second, third = make_steps()
    warning = shrink_warning(first, make_step(1, 10, 900_000, 0.9, 1.0))
    for text in (warning, _guessing()):
        steps = [first, warned(second, text), third]
        report = build_report(make_info(tmp_path), steps, "finished")
        assert report["in_front"] is False
        assert text in markdown(report)
    other = [first, warned(second, "one batch was short"), third]
    assert build_report(make_info(tmp_path), other, "finished")["in_front"] is True


def test_a_run_that_stopped_early_has_no_final_stage(tmp_path):
    report = build_report(make_info(tmp_path), make_steps()[:2], "failed")
    assert report["final"] is None
    assert report["in_front"] is False
    assert "failed after 2 stages" in markdown(report)
    assert build_report(make_info(tmp_path), [], "failed")["baseline"] is None


def test_tables_on_disk_agree_with_the_rows(tmp_path):
    report = build_report(make_info(tmp_path), make_steps(), "finished")
    as_csv, as_json = write_tables(report, tmp_path)
    rows = comparison_rows(report)
    assert json.loads(as_json.read_text()) == rows
    with as_csv.open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [float(r["download_bytes"]) for r in read] == [r["download_bytes"] for r in rows]
    assert read[1]["test"] == ""


def test_a_table_of_a_stage_is_in_the_report_and_a_file(tmp_path):
    steps = make_steps()
    rows = [{"layer": "stem", "bits": 4}, {"layer": "head", "bits": None}]
    steps[2] = replace(steps[2], name="../low/bits", tables={"allocation": rows})
    settings = {name: {} for name in ("train", "prune", "../low/bits")}
    info = replace(make_info(tmp_path / "run"), config={"recipe": {"stages": settings}})
    info.folder.mkdir()
    report = build_report(info, steps, "finished")
    assert report["stages"][2]["tables"] == {"allocation": rows}
    *_, path = write_tables(report, info.folder)
    assert path.parent == info.folder
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"layer": "stem", "bits": "4"},
            {"layer": "head", "bits": ""},
        ]


def test_markdown_is_one_table_with_a_headline(tmp_path):
    lines = markdown(build_report(make_info(tmp_path), make_steps(), "finished")).splitlines()
    assert "100 kB (9.00× smaller)" in lines[0]
    cells = [line.count("|") for line in lines if line.startswith("|")]
    assert len(cells) == 5
    assert len(set(cells)) == 1


def test_environment_names_versions_and_no_machine():
    found = environment()
    assert {"torch", "onnx", "onnxruntime", "compressbench"} <= set(found["versions"])
    text = json.dumps(found)
    names = {platform.node(), getpass.getuser()} - {"", "localhost", "root"}
    assert not any(name in text for name in names)
