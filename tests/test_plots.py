from __future__ import annotations

import math
from dataclasses import replace

from sample_steps import NAMES, make_info, make_steps

from compressbench.core import Measurement
from compressbench.plots import accuracy_against_size, write_html
from compressbench.report import build_report


def test_the_page_carries_its_script_and_every_stage(tmp_path):
    report = build_report(make_info(tmp_path), make_steps(), "finished")
    path = tmp_path / "accuracy_size.html"
    write_html(accuracy_against_size(report), path)
    page = path.read_text(encoding="utf-8")
    assert len(page) > 1_000_000  # plotly itself
    assert "src=" not in page[:2000]
    data = page[page.rindex("Plotly.newPlot") :]
    assert all(name in data for name in NAMES)


def test_points_are_the_figures_in_stage_order(tmp_path):
    report = build_report(make_info(tmp_path), make_steps(), "finished")
    traces = {t.name: t for t in accuracy_against_size(report).data if t.name}
    assert list(traces["download (zstd 19)"].x) == [900_000, 450_000, 100_000]
    assert list(traces["onnx file"].y) == [0.90, 0.89, 0.88]
    assert list(traces["onnx file"].text) == list(NAMES)
    assert "sparsity = 0.5" in traces["onnx file"].hovertext[1]
    assert "criterion = L1" in traces["onnx file"].hovertext[1]


def test_a_stage_without_a_file_is_left_out_of_the_picture(tmp_path):
    steps = make_steps()
    steps[1] = replace(steps[1], measurement=Measurement({"val/accuracy": math.nan}))
    figure = accuracy_against_size(build_report(make_info(tmp_path), steps, "finished"))
    assert all(len(trace.x) == 2 for trace in figure.data)


def test_names_of_stages_are_text_and_no_markup(tmp_path):
    report = build_report(make_info(tmp_path), make_steps(), "finished")
    report["stages"][0]["name"] = "<img src=x>"
    hover = accuracy_against_size(report).data[0].hovertext[0]
    assert "<img" not in hover
    assert "&lt;img" in hover
