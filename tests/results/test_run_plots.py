from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest

from compressbench.core.types import Measurement
from compressbench.results.run_plots import accuracy_against_size, layer_widths, write_pages
from compressbench.results.run_report import build_report
from tests.sample_steps import NAMES, make_info, make_steps


def test_the_page_needs_no_other_file_and_has_every_stage(tmp_path):
    report = build_report(make_info(tmp_path), make_steps(), "finished")
    (path, left) = write_pages(report, tmp_path)
    assert [path.name, left.name] == ["accuracy_size.html", "layers_left.html"]
    page = path.read_text(encoding="utf-8")
    assert len(page) < 100_000
    assert " src=" not in page
    assert all(f">{name}<" in page for name in NAMES)
    assert "<title>prune_then_quant: accuracy size</title>" in page


def test_points_are_the_figures_in_stage_order(tmp_path):
    report = build_report(make_info(tmp_path), make_steps(), "finished")
    series = {s.name: s for s in accuracy_against_size(report).series}
    download, onnx = series["download (zstd 19)"], series["onnx file"]
    assert [p.x for p in download.points] == [900_000, 450_000, 100_000]
    assert [p.y for p in onnx.points] == [0.90, 0.89, 0.88]
    assert [p.label for p in download.points] == list(NAMES)
    assert [p.y for p in series["onnx file, test"].points] == pytest.approx([0.89, 0.88, 0.87])
    lines = onnx.points[1].text.splitlines()
    assert lines[0] == "prune: prune"
    assert "sparsity = 0.5" in lines
    assert "criterion = L1" in lines
    low, high = accuracy_against_size(report).y.limits
    assert low < 0.87
    assert high > 0.90


def test_a_stage_without_a_file_is_left_out_of_the_picture(tmp_path):
    steps = make_steps()
    steps[1] = replace(steps[1], measurement=Measurement({"val/accuracy": math.nan}))
    chart = accuracy_against_size(build_report(make_info(tmp_path), steps, "finished"))
    assert all(len(series.points) == 2 for series in chart.series)


def test_names_of_stages_are_text_and_no_markup(tmp_path):
    report = build_report(make_info(tmp_path), make_steps(), "finished")
    report["stages"][0]["name"] = "<img src=x>"
    page = write_pages(report, tmp_path)[0].read_text(encoding="utf-8")
    assert "<img" not in page
    assert "&lt;img src=x&gt;: train" in page


def mixed_steps():
    """The last stage with an allocation of three layers, one of them by a rule."""
    rows = [
        {"layer": "stem", "weights": 100, "bits": 8, "bytes": 140, "chosen": True,
         "option": "widths.stem=8", "sensitivity_2": 1e-2, "sensitivity_8": 0.0},
        {"layer": "<b>body", "weights": 300, "bits": 2, "bytes": 90, "chosen": True,
         "option": "widths.body=2", "sensitivity_2": 1e-4, "sensitivity_8": 1e-7},
        {"layer": "head", "weights": 10, "bits": 6, "bytes": 20, "chosen": False,
         "option": "widths.head=6", "sensitivity_2": None, "sensitivity_8": None},
    ]  # fmt: skip
    steps = make_steps()
    steps[2] = replace(steps[2], tables={"allocation": rows})
    return steps


def test_widths_are_marked_in_the_table_of_sensitivities(tmp_path):
    report = build_report(make_info(tmp_path), mixed_steps(), "finished")
    (table,) = layer_widths(report)
    assert "3.56 bits per weight" in table
    rows = table.split("<tr>")[2:]
    assert [re.search("<td>(.*?)</td>", row)[1] for row in rows] == [
        "stem", "&lt;b&gt;body", "head"
    ]  # fmt: skip
    assert [re.search(r'chosen"[^>]*>(.*?)</td>', row)[1] for row in rows] == ["0", "0.0001", ""]
    assert "6 bits, set by a rule, not by the budget" in rows[2]
    assert "by a rule" not in rows[1]
    shades = [re.findall(r"rgba\(209, 60, 42, ([\d.]+)\)", row) for row in rows]
    assert shades == [["0.75"], ["0.45", "0.00"], []]  # from 1e-7 to 1e-2, on a log scale
    assert "layer_widths.html" in [path.name for path in write_pages(report, tmp_path)]


def test_without_an_allocation_there_is_no_table(tmp_path):
    assert not layer_widths(build_report(make_info(tmp_path), make_steps(), "finished"))
