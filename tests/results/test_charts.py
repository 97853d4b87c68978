"""Charts as SVG: where points are pointed at, and what an axis shows."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from compressbench.results.chart import Axis, Chart, Point, Rule, Series, byte_ticks
from compressbench.results.chart_drawing import svg
from compressbench.results.page import bar_cell, cell, chart_section, table_section

SVG = "{http://www.w3.org/2000/svg}"


def chart(*points, limits=None, unit="number", **more):
    return Chart("t", [], Axis("x"), Axis("y", unit, limits), [Series("s", points, "#123456")],
                 **more)  # fmt: skip


def targets(drawn):
    found = ElementTree.fromstring(drawn).findall(f"{SVG}circle")
    return {c.get("data-text"): (float(c.get("cx")), float(c.get("cy"))) for c in found}


def marks(drawn):
    """Where matplotlib itself drew the marks of the series."""
    uses = ElementTree.fromstring(drawn).iter(f"{SVG}use")
    return [(float(u.get("x")), float(u.get("y"))) for u in uses if "#123456" in u.get("style")]


def test_a_point_is_pointed_at_where_it_is_drawn():
    drawn = svg(chart(Point(1, 2, "a"), Point(3, 5, "b"), Point(2, 7, "c")), "")
    places = targets(drawn)
    assert list(places) == ["a", "b", "c"]
    for place, mark in zip(places.values(), marks(drawn), strict=True):
        assert place == pytest.approx(mark, abs=0.1)


def test_bytes_are_halved_along_a_logarithmic_axis():
    assert byte_ticks(60_000, 900_000) == [32e3, 64e3, 128e3, 256e3, 512e3, 1e6]
    points = [Point(x, 1, str(x)) for x in (60_000, 120_000, 240_000)]
    one = [Series("s", points, "#123456")]
    drawn = svg(Chart("t", [], Axis("x", "bytes"), Axis("y"), one), "")
    left, middle, right = (place[0] for place in targets(drawn).values())
    assert right - middle == pytest.approx(middle - left, abs=0.2)
    assert ">64 kB<" in drawn
    assert ">128 kB<" in drawn


def test_points_below_the_range_are_not_pointed_at_but_in_the_whole_chart():
    cut = chart(Point(1, 0.9, "in"), Point(2, 0.1, "out"), limits=(0.8, 1.0), below="1 trial")
    assert set(targets(svg(cut, ""))) == {"in"}
    assert set(targets(svg(cut.whole(), ""))) == {"in", "out"}
    section = chart_section(cut, "c")
    assert "Below the plot: 1 trial; double-click to show all points." in section
    assert section.count('class="view"') == 2
    assert section.count('class="view" hidden') == 1


def test_ids_of_the_charts_of_a_page_differ_and_are_the_same_again():
    one = chart(Point(1, 2, "a"))
    ids = {salt: set(re.findall(r"url\(#(\w+)\)", svg(one, salt))) for salt in ("a", "b")}
    assert ids["a"]
    assert not ids["a"] & ids["b"]
    assert svg(one, "a") == svg(one, "a")


def test_text_is_neither_markup_nor_a_formula():
    drawn = svg(chart(Point(1, 2, '"<b>', link="http://h/?a&b", label="$x_{ <i>")), "")
    (circle,) = ElementTree.fromstring(drawn).findall(f"{SVG}circle")
    assert circle.get("data-text") == '"<b>'
    assert circle.get("data-link") == "http://h/?a&b"
    assert "$x_{ &lt;i&gt;" in drawn


def test_the_legend_names_each_series_once_and_the_rules():
    kinds = [("a<", "circle"), ("knee", "diamond"), ("knee", "diamond"), ("", "circle")]
    series = [Series(name, [Point(1, 2)], "#123456", mark) for name, mark in kinds]
    rules = [Rule("y", 2, "at least 2")]
    section = chart_section(Chart("t", [], Axis("x"), Axis("y"), series, rules))
    legend = section[section.index('class="legend"') :]
    assert legend.count("<span>") == 3
    assert legend.count("◇") == 1
    assert "a&lt;" in legend
    assert "at least 2" in legend


def test_cells_of_a_table_are_text():
    row = [cell("<b>", kind="chosen", background="red", hover='"'), bar_cell(0.25)]
    table = table_section("t <", "n &", ["h >"], [row])
    assert "<h2>t &lt;</h2><p>n &amp;</p>" in table
    assert 'class="chosen" style="background: red" data-text="&quot;">&lt;b&gt;</td>' in table
    assert "25.0 %" in table
    assert "width: 25.0%" in table
