from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from compressbench.core.formatting import (
    bytes_text,
    count_text,
    metric_text,
    milliseconds_text,
    seconds_text,
    times_text,
)
from compressbench.core.types import Coverage
from compressbench.results.run_report import build_report, table
from compressbench.results.terminal import LEAST_IMPORTANT_FIRST, Terminal
from tests.sample_steps import NAMES, make_info, make_steps, warned


def run(width, steps, **options):
    console = Console(width=width, file=io.StringIO(), **options)
    with Terminal(NAMES, console=console) as terminal:
        for step in steps:
            for batch in range(3):
                terminal.progress(batch, 3, f"epoch 1, batch {batch}")
            terminal.step(step)
    return terminal, console


@pytest.mark.parametrize("width", [80, 100, 120])
def test_every_line_of_the_table_fits(tmp_path, width):
    report = build_report(make_info(tmp_path), make_steps(), "finished")
    console = Console(width=width, file=io.StringIO())
    Terminal(NAMES, console=console).table(table(report))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    rows = [line for line in lines if line.startswith(NAMES)]
    assert [row.split()[0] for row in rows] == list(NAMES)
    assert "…" not in console.file.getvalue()
    assert "100 kB" in rows[2]
    assert "9.00×" in rows[2]
    assert "88.00 %" in rows[2]
    if width == 120:
        assert "40.8 M" in rows[2]
        assert "not shown" not in lines[-1]


def test_columns_that_may_go_are_columns(tmp_path):
    report = build_report(make_info(tmp_path), make_steps(), "finished")
    assert set(LEAST_IMPORTANT_FIRST) < set(table(report)[0])


def test_what_does_not_fit_is_named(tmp_path):
    report = build_report(make_info(tmp_path), make_steps(), "finished")
    console = Console(width=80, file=io.StringIO())
    Terminal(NAMES, console=console).table(table(report))
    assert "not shown at this width: store" in console.file.getvalue()


def test_a_long_stage_name_is_shortened_not_wrapped(tmp_path):
    steps = [replace(s, name=s.name + "_with_a_rather_long_name" * 3) for s in make_steps()]
    info = make_info(tmp_path)
    stages = {s.name: {} for s in steps}
    report = build_report(replace(info, config={"recipe": {"stages": stages}}), steps, "finished")
    console = Console(width=80, file=io.StringIO())
    Terminal(NAMES, console=console).table(table(report))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("…" in line for line in lines) == 3


def test_plain_output_is_one_line_per_start_and_end_without_control_characters():
    _, console = run(80, make_steps())
    text = console.file.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    heads = [line for line in lines if line.startswith("[")]
    assert len(heads) == 6
    assert heads[0] == "[1/3] train ... (then prune, quantize)"
    assert heads[1].startswith("[1/3] train from the store, 1.5 s: val 90.00 %")
    assert "epoch" not in text


def test_a_terminal_gets_a_bar_with_what_is_left():
    _, console = run(80, make_steps(), force_terminal=True)
    text = console.file.getvalue()
    assert "\x1b" in text
    assert "then prune, quantize" in text


def test_warnings_are_loud_and_markup_in_them_is_text():
    steps = make_steps()
    steps[1] = warned(steps[1], "prune: the download did not shrink [bold]")
    _, plain = run(80, steps)
    assert "WARNING: prune: the download did not shrink [bold]" in plain.file.getvalue()
    _, coloured = run(80, steps, force_terminal=True, color_system="standard")
    assert "\x1b[1;33mWARNING" in coloured.file.getvalue()


def test_notes_of_a_stage_stand_under_it(tmp_path):
    note = "teacher: float32, once for each of 9 images (1 kB)"
    noted = replace(make_steps()[1], notes=(note,))
    _, console = run(80, [noted])
    assert f"      {note}\n" in console.file.getvalue()
    assert build_report(make_info(tmp_path), [noted], "finished")["stages"][0]["notes"] == [note]


def test_coverage_says_which_layers_and_what_share():
    console = Console(width=80, file=io.StringIO())
    rows = [Coverage(f"layer{n}", "Conv2d", 100, 100) for n in range(40)]
    Terminal(NAMES, console=console).coverage([*rows, Coverage("head", "Linear", 1000, 0)])
    text = console.file.getvalue()
    assert "touched 40 of 41 layers, 80.0 % of 5,000 weights" in text
    assert "not touched: head" in text
    assert "29 more layers" in text


def test_paths_commands_and_links_stay_on_one_line(tmp_path):
    terminal, console = run(80, make_steps())
    ship, link = "/" + "long/" * 40 + "model.onnx", "http://127.0.0.1:5000/#/" + "x" * 100
    report = build_report(make_info(tmp_path), make_steps(), "finished")
    terminal.summary(table(report), ship, "mlflow ui --port 5000", link, "the server is away")
    lines = console.file.getvalue().splitlines()
    assert f"file to ship: {ship}" in lines
    assert "see it in MLflow: mlflow ui --port 5000" in lines
    assert f"then open: {link}" in lines
    assert lines[-1] == "WARNING: the server is away"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(999), "999 B"),
        (bytes_text(999_499), "999 kB"),
        (bytes_text(999_500), "1.00 MB"),
        (bytes_text(1_174_594), "1.17 MB"),
        (bytes_text(None), "–"),
        (count_text(40_813_184), "40.8 M"),
        (milliseconds_text(0.0412), "0.041 ms"),
        (milliseconds_text(12.34), "12.3 ms"),
        (times_text(3.7654), "3.77×"),
        (seconds_text(59.96), "60.0 s"),
        (seconds_text(3725), "1 h 02 min"),
        (seconds_text(125), "2 min 05 s"),
        (metric_text(0.8033, "accuracy"), "80.33 %"),
        (metric_text(0.8033, "f1"), "0.8033"),
    ],
)
def test_units(text, expected):
    assert text == expected
