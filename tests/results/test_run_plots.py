from __future__ import annotations

import math
from dataclasses import replace

from compressbench.core.types import Measurement
from compressbench.results.run_plots import accuracy_against_size, layer_widths, write_html
from compressbench.results.run_report import build_report
from tests.sample_steps import NAMES, make_info, make_steps


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


def test_widths_are_marked_on_the_map_of_sensitivities(tmp_path):
    figure = layer_widths(build_report(make_info(tmp_path), mixed_steps(), "finished"))
    heat, marks = figure.data
    assert [list(line) for line in heat.z] == [[-2, -4, None], [None, -7, None]]
    assert list(heat.x) == list(marks.x) == ["stem", "&lt;b&gt;body", "head"]
    assert list(marks.y) == ["8", "2", "6"]
    assert "by a rule" in marks.hovertext[2]
    assert "by a rule" not in marks.hovertext[1]
    assert "3.56 bits a weight" in figure.layout.annotations[0].text
    write_html(figure, tmp_path / "layer_widths.html")
    assert "Plotly.newPlot" in (tmp_path / "layer_widths.html").read_text(encoding="utf-8")


def test_without_an_allocation_there_is_no_map(tmp_path):
    assert layer_widths(build_report(make_info(tmp_path), make_steps(), "finished")) is None
