from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from compressbench.results import chart_drawing, page
from compressbench.results import front as fronts
from compressbench.results.front_html import write_page
from compressbench.results.front_picture import (
    Picture,
    below_text,
    front_chart,
    history_chart,
    title_lines,
    y_range,
)
from compressbench.results.front_png import write_png
from compressbench.results.sweep import Objective
from tests.sample_sweep import OBJECTIVES, make_sweep, make_trial

ONE = Picture([make_sweep("/s")])
FRONT = "front of digits <b>sweep"


def series(picture):
    return {s.name: s for s in front_chart(picture).series}


def xs(found):
    return [p.x for p in found.points]


def ys(found):
    return [p.y for p in found.points]


def test_trials_are_faint_and_the_front_is_a_step_line():
    found = series(ONE)
    front = found[FRONT]
    assert xs(front) == [256_000, 128_000, 64_000]
    assert ys(front) == [0.95, 0.93, 0.80]
    # from 128 kB on, up to below 256 kB, holds what 128 kB gives: down first, then across
    assert front.line == "step"
    assert len(found["other trials"].points) == 2
    assert found["other trials"].opacity < 0.5
    assert ys(found["outside the constraints"]) == [0.99]
    assert xs(found["float baseline"]) == [900_000]
    assert ys(found["knee"]) == [0.93]


def test_error_bars_come_from_repeats():
    assert {p.y_error for p in series(ONE)[FRONT].points} == {0.0}
    first = make_trial(0, 0.95, 256_000, repeats=({"val/accuracy": 0.93},))
    sweep = make_sweep(trials=(first, make_trial(1, 0.94, 100_000)))
    found = series(Picture([sweep]))
    bars = [p.y_error for p in found[FRONT].points]
    assert bars == pytest.approx([0.01414, 0.0], rel=1e-3)
    assert ys(found["within noise of a smaller member"]) == [0.95]


def test_stopped_trials_are_marked():
    stopped = make_trial(9, 0.9, 200_000, state="pruned")
    sweep = make_sweep(trials=(*make_sweep().trials, stopped))
    found = series(Picture([sweep]))["stopped early"]
    assert xs(found) == [200_000]
    assert found.points[0].text.startswith("trial 9 (pruned)\n")


def test_what_is_said_of_a_trial_has_settings_and_figures():
    odd = make_trial(0, 0.95, 256_000, settings={"recipe.stages.a.b": "<img src=x>"})
    (point,) = series(Picture([make_sweep(trials=(odd,))]))[FRONT].points
    assert "val/accuracy 95.00 %" in point.text.splitlines()
    assert "size/download_bytes 256 kB" in point.text.splitlines()
    assert "a.b = <img src=x>" in point.text.splitlines()
    assert "prune.sparsity = 0.6" in series(ONE)[FRONT].points[1].text


def test_a_page_has_no_markup_from_outside(tmp_path):
    odd = make_trial(0, 0.95, 256_000, settings={"recipe.stages.a.b": '"><img src=x>'})
    write_page(Picture([make_sweep(trials=(odd,))]), tmp_path / "front.html")
    text = (tmp_path / "front.html").read_text(encoding="utf-8")
    assert "<img" not in text
    assert "a.b = &quot;&gt;&lt;img src=x&gt;" in text
    assert "<b>sweep" not in text


def test_a_click_leads_to_the_run_or_to_the_folder():
    links = {("/s", 0): "http://127.0.0.1:5000/#/x", ("/s", 3): "javascript:alert(1)"}
    front = series(replace(ONE, links=links))[FRONT]
    wanted = ["http://127.0.0.1:5000/#/x", "", "file:///s/trials/4"]
    assert [p.link for p in front.points] == wanted


def test_useless_trials_do_not_flatten_the_picture():
    sweep = make_sweep(trials=(*make_sweep().trials, make_trial(9, 0.10, 1000)))
    low, high = y_range(Picture([sweep]))
    assert 0.75 < low < 0.80
    assert 0.99 < high < 1.05


def test_what_lies_below_the_picture_is_named():
    assert below_text(ONE) == ""
    useless = make_trial(9, 0.10, 1000)
    more = (*make_sweep().trials, useless, make_trial(10, 0.2, 900_000))
    one = Picture([make_sweep(trials=more)])
    assert below_text(one) == "trial 9 of the front (1.00 kB, 10.00 %) and 1 other trial"
    worse = make_sweep(trials=(*make_sweep().trials, make_trial(9, 0.10, 400_000)))
    assert below_text(Picture([worse])) == "1 trial"
    many = [make_trial(10 + i, 0.1 + 0.1 * i, 1000 * (i + 1)) for i in range(5)]
    text = below_text(Picture([make_sweep(trials=(*make_sweep().trials, *many))]))
    assert text.endswith("trial 12 of the front (3.00 kB, 30.00 %) and 2 more members")
    two = Picture([make_sweep("/s"), make_sweep("/o", name="other", trials=(useless,))])
    assert below_text(two) == "trial 9 of the front of other (1.00 kB, 10.00 %)"


def test_only_the_page_speaks_of_a_double_click(tmp_path, monkeypatch):
    picture = Picture([make_sweep(trials=(*make_sweep().trials, make_trial(9, 0.10, 1000)))])
    below = "Below the plot: trial 9 of the front (1.00 kB, 10.00 %)"
    section = page.chart_section(front_chart(picture))
    assert f"{below}; double-click to show all points." in section
    assert section.count("<svg") == 2
    assert section.count("trial 9\n") == 1  # pointed at in the whole chart alone
    assert page.chart_section(front_chart(ONE)).count("<svg") == 1
    said = []
    real = chart_drawing._draw

    def spy(chart, dpi):
        figure, plot = real(chart, dpi)
        monkeypatch.setattr(plot, "set_title", lambda text, **rest: said.append(text))
        return figure, plot

    monkeypatch.setattr(chart_drawing, "_draw", spy)
    write_png(picture, tmp_path / "front.png")
    assert said[0].endswith(f"\n{below}.")
    assert "click" not in said[0]


def test_budget_minimum_and_choice_are_marked():
    picture = replace(ONE, budget_bytes=130_000, minimum=0.9, ship=("/s", 3))
    chart = front_chart(picture)
    assert [(r.axis, r.value, r.name) for r in chart.rules] == [
        ("x", 130_000, "budget 130 kB"), ("y", 0.9, "at least 90.00 %")
    ]  # fmt: skip
    assert xs(series(picture)["to ship"]) == [128_000]


def test_the_title_says_which_way_is_better():
    lines = title_lines(ONE)
    assert lines[0] == "digits <b>sweep: accuracy against download size"
    assert "up and left is better" in lines[1]
    speed = (OBJECTIVES[0], Objective("latency/speedup", "maximize"))
    fast = Picture([make_sweep(objectives=speed)])
    assert "up and right is better" in title_lines(fast)[1]
    assert (front_chart(fast).x.unit, front_chart(ONE).x.unit) == ("number", "bytes")


def test_with_three_objectives_members_are_not_joined():
    three = (*OBJECTIVES, Objective("latency/speedup", "maximize"))
    assert series(Picture([make_sweep(objectives=three)]))[FRONT].line == "none"


def test_one_objective_is_drawn_over_bytes():
    assert xs(series(Picture([make_sweep(objectives=OBJECTIVES[:1])]))[FRONT]) == [256_000]


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
    found = series(Picture([make_sweep("/s"), other]))
    assert found["front of other"].colour != found[FRONT].colour
    assert "digits <b>sweep: other trials" in found
    assert len(history_chart([make_sweep("/s"), other]).series) == 2


def test_the_hypervolume_grows_over_finished_trials():
    chart = history_chart([make_sweep()])
    assert xs(chart.series[0]) == [1, 2, 3, 4, 5, 6, 7]
    assert ys(chart.series[0]) == pytest.approx(fronts.history(make_sweep()))
    low, high = chart.y.limits
    assert low == 0 < max(fronts.history(make_sweep())) < high
    assert history_chart([make_sweep(baseline={})]).y.limits == (0, 1)


def test_the_page_needs_no_other_file(tmp_path):
    path = tmp_path / "front.html"
    write_page(ONE, path)
    text = path.read_text(encoding="utf-8")
    assert len(text) < 100_000
    assert " src=" not in text
    assert text.count("<svg") == 2
    assert "<title>digits &lt;b&gt;sweep</title>" in text
    assert [p.name for p in tmp_path.iterdir()] == ["front.html"]


def test_the_png_is_a_picture_of_the_front(tmp_path):
    path = tmp_path / "front.png"
    write_png(replace(ONE, budget_bytes=130_000, minimum=0.9, ship=("/s", 3)), path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    assert struct.unpack(">II", data[16:24]) == (1080, 672)
    write_png(Picture([make_sweep("/s", name="a $x_{ sweep")]), path)
    assert path.read_bytes() != data
    assert [p.name for p in tmp_path.iterdir()] == ["front.png"]
