from __future__ import annotations

import math
import struct
from dataclasses import replace

import pytest

from compressbench.results import front as fronts
from compressbench.results.front_html import front_figure, history_figure, write_page
from compressbench.results.front_picture import Picture, byte_ticks, title_lines, y_range
from compressbench.results.front_png import write_png
from compressbench.results.sweep import Objective
from tests.sample_sweep import OBJECTIVES, make_sweep, make_trial

ONE = Picture([make_sweep("/s")])


def traces(picture):
    return {t.name: t for t in front_figure(picture).data}


def test_trials_are_faint_and_the_front_is_a_step_line():
    found = traces(ONE)
    front = found["front of digits &lt;b&gt;sweep"]
    assert list(front.x) == [256_000, 128_000, 64_000]
    assert list(front.y) == [0.95, 0.93, 0.80]
    # from 128 kB on, up to below 256 kB, holds what 128 kB gives: down first, then across
    assert front.line.shape == "vh"
    assert len(found["other trials"].x) == 2
    assert found["other trials"].opacity < 0.5
    assert list(found["outside the constraints"].y) == [0.99]
    assert list(found["float baseline"].x) == [900_000]
    assert list(found["knee"].y) == [0.93]


def test_error_bars_come_from_repeats():
    assert traces(ONE)["front of digits &lt;b&gt;sweep"].error_y.array is None
    first = make_trial(0, 0.95, 256_000, repeats=({"val/accuracy": 0.93},))
    sweep = make_sweep(trials=(first, make_trial(1, 0.94, 100_000)))
    found = traces(Picture([sweep]))
    bars = found["front of digits &lt;b&gt;sweep"].error_y.array
    assert list(bars) == pytest.approx([0.01414, 0.0], rel=1e-3)
    assert list(found["no better than a smaller one, within noise"].y) == [0.95]


def test_hover_has_settings_and_figures_and_no_markup_from_outside():
    odd = make_trial(0, 0.95, 256_000, settings={"recipe.stages.a.b": "<img src=x>"})
    hover = traces(Picture([make_sweep(trials=(odd,))]))["front of digits &lt;b&gt;sweep"].hovertext
    assert "val/accuracy 95.00 %" in hover[0]
    assert "size/download_bytes 256 kB" in hover[0]
    assert "a.b = &lt;img src=x&gt;" in hover[0]
    assert "prune.sparsity = 0.6" in traces(ONE)["front of digits &lt;b&gt;sweep"].hovertext[1]


def test_a_click_leads_to_the_run_or_to_the_folder():
    links = {("/s", 0): "http://127.0.0.1:5000/#/x", ("/s", 3): "javascript:alert(1)"}
    front = traces(replace(ONE, links=links))["front of digits &lt;b&gt;sweep"]
    assert list(front.customdata) == ["http://127.0.0.1:5000/#/x", "", "file:///s/trials/4"]


def test_bytes_are_halved_along_the_axis():
    ticks = byte_ticks(60_000, 900_000)
    assert ticks == [32e3, 64e3, 128e3, 256e3, 512e3, 1e6]
    axis = front_figure(ONE).layout.xaxis
    assert axis.type == "log"
    assert "64 kB" in axis.ticktext
    assert "1 MB" in axis.ticktext


def test_useless_trials_do_not_flatten_the_picture():
    sweep = make_sweep(trials=(*make_sweep().trials, make_trial(9, 0.10, 1000)))
    low, high = y_range(Picture([sweep]))
    assert 0.75 < low < 0.80
    assert 0.99 < high < 1.05
    assert "Below the picture: 1;" in title_lines(Picture([sweep]))[-1]
    assert "Below" not in title_lines(ONE)[-1]


def test_budget_minimum_and_choice_are_marked():
    picture = replace(ONE, budget_bytes=130_000, minimum=0.9, ship=("/s", 3))
    figure = front_figure(picture)
    texts = [a.text for a in figure.layout.annotations]
    assert texts == ["budget 130 kB", "at least 90.00 %"]
    assert figure.layout.annotations[0].x == pytest.approx(math.log10(130_000))
    chosen = next(t for t in figure.data if t.name == "ship this one")
    assert list(chosen.x) == [128_000]


def test_the_title_says_which_way_is_better():
    lines = title_lines(ONE)
    assert lines[0] == "digits <b>sweep: accuracy against download size"
    assert "up and left is better" in lines[1]
    speed = (OBJECTIVES[0], Objective("latency/speedup", "maximize"))
    fast = Picture([make_sweep(objectives=speed)])
    assert "up and right is better" in title_lines(fast)[1]
    assert front_figure(fast).layout.xaxis.type is None
    assert "<b>sweep" not in front_figure(ONE).layout.title.text


def test_with_three_objectives_members_are_not_joined():
    three = (*OBJECTIVES, Objective("latency/speedup", "maximize"))
    front = traces(Picture([make_sweep(objectives=three)]))["front of digits &lt;b&gt;sweep"]
    assert front.mode == "markers"


def test_one_objective_is_drawn_over_bytes():
    front = traces(Picture([make_sweep(objectives=OBJECTIVES[:1])]))
    assert list(front["front of digits &lt;b&gt;sweep"].x) == [256_000]


def test_error_bars_are_inside_the_picture():
    sweep = make_sweep(validation_rows=100)
    low, high = y_range(Picture([sweep]))
    ends = [0.95 + fronts.standard_error(sweep.trials[0], "val/accuracy", sweep), 0.80]
    assert low < min(ends)
    assert high > max(ends)
    bare = y_range(Picture([replace(sweep, baseline={})]))
    assert bare is None


def test_several_sweeps_are_one_picture():
    other = make_sweep("/o", name="other", trials=(make_trial(0, 0.9, 50_000),))
    found = traces(Picture([make_sweep("/s"), other]))
    assert found["front of other"].line.color != found["front of digits &lt;b&gt;sweep"].line.color
    assert len(history_figure([make_sweep("/s"), other]).data) == 2


def test_the_hypervolume_grows_over_finished_trials():
    trace = history_figure([make_sweep()]).data[0]
    assert list(trace.x) == [1, 2, 3, 4, 5, 6, 7]
    assert list(trace.y) == pytest.approx(fronts.history(make_sweep()))


def test_the_page_carries_its_script(tmp_path):
    path = tmp_path / "front.html"
    write_page(ONE, path)
    page = path.read_text(encoding="utf-8")
    assert len(page) > 1_000_000  # plotly itself
    assert page.count("Plotly.newPlot(") >= 2
    assert "<script src" not in page
    assert "plotly_click" in page
    assert "<title>digits &lt;b&gt;sweep</title>" in page
    assert [p.name for p in tmp_path.iterdir()] == ["front.html"]


def test_the_png_is_a_picture_of_the_front(tmp_path):
    path = tmp_path / "front.png"
    write_png(replace(ONE, budget_bytes=130_000, minimum=0.9, ship=("/s", 3)), path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (1080, 672)
    write_png(Picture([make_sweep("/s", name="a $x_{ sweep")]), path)
    assert path.read_bytes() != data
