from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from compressbench.results.sweep_terminal import (
    SweepView,
    counts,
    seconds_left,
    summary,
    trial_line,
)
from tests.sample_sweep import make_sweep, make_trial


def show(sweeps, width=100, **options):
    console = Console(width=width, file=io.StringIO(), highlight=False, **options)
    with SweepView(console) as view:
        for sweep in sweeps:
            view.update(sweep)
    return console.file.getvalue()


def growing(sweep):
    return [replace(sweep, trials=sweep.trials[:n]) for n in range(1, len(sweep.trials) + 1)]


def test_trials_are_counted_by_what_became_of_them():
    pruned = make_trial(8, 0.5, 10, state="pruned")
    sweep = make_sweep(trials=(*make_sweep().trials, pruned), n_trials=40)
    assert counts(sweep) == (
        "8 of 40 trials done, 1 running, 1 failed, 1 stopped early, 1 outside the constraints; "
        "18 of 36 stages from the store"
    )


def test_time_left_is_what_is_left_over_the_busy_workers():
    running = [make_trial(20 + i, 0.0, 1, state="running", seconds=0.0) for i in range(2)]
    sweep = make_sweep(n_trials=17, trials=(*make_sweep().trials[:7], *running))
    assert seconds_left(sweep) == pytest.approx(10 * 10.0 / 2)
    assert seconds_left(replace(sweep, trials=tuple(running))) is None
    assert seconds_left(replace(sweep, n_trials=7)) == 0.0
    assert "about 50.0 s left" in summary(sweep)
    assert "left" not in summary(replace(sweep, n_trials=7))


def test_elsewhere_there_is_one_plain_line_a_trial():
    sweep = make_sweep()
    text = show([*growing(sweep), sweep])
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert len(lines) == 7  # the start, then six that finished; one still runs
    assert lines[0].startswith("digits <b>sweep: 1 of 8 trials done")
    assert lines[3].startswith(
        "[4/8] trial 3 done, 10.0 s: val/accuracy 93.00 %, size/download_bytes 128 kB"
    )
    assert "(prune.sparsity = 0.6, quantize.bits = 8)" in lines[3]
    assert "2 on the front, hypervolume 58.0" in lines[3]
    assert "trial 6 failed, 10.0 s: out of memory" in lines[6]


def test_a_sweep_that_goes_on_does_not_repeat_its_trials():
    lines = show([make_sweep(), make_sweep()]).splitlines()
    assert len(lines) == 1


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_terminal_gets_one_block_with_the_front(width):
    text = show([make_sweep()], width, force_terminal=True, color_system=None)
    lines = [line for line in text.splitlines() if line.strip()]
    assert any("7 of 8 trials done" in line for line in lines)
    rows = [line.split()[0] for line in lines if line.split()[0] in ("0", "3", "4")]
    assert rows[-3:] == ["0", "3", "4"]
    assert len(rows) <= 6  # drawn, and once more at the end
    knee = next(line for line in lines if line.split()[0] == "3")
    assert "knee" in knee
    assert "128 kB" in knee
    visible = [line for line in lines if "\x1b" not in line]
    assert max(map(len, visible)) <= width


def test_a_long_front_is_shown_from_end_to_end_in_few_lines():
    trials = tuple(make_trial(i, 0.95 - 0.001 * i, 900_000 - 1000 * i) for i in range(60))
    text = show([make_sweep(trials=trials)], force_terminal=True, color_system=None)
    shown = [line.split()[0] for line in text.splitlines() if "quantize.bits" in line]
    assert len(set(shown)) == 8
    assert (shown[0], shown[-1]) == ("0", "59")


def test_before_the_first_trial_there_is_nothing_to_show():
    empty = make_sweep(trials=(), baseline={})
    text = show([empty], force_terminal=True, color_system=None)
    assert "no complete trial yet" in text
    assert "hypervolume –, about – left" in text


def test_markup_in_settings_is_text():
    odd = make_trial(0, 0.95, 100_000, settings={"recipe.stages.a.b": "[bold]x"})
    assert "[bold]x" in trial_line(odd, make_sweep(trials=(odd,)))
    text = show([make_sweep(trials=(odd,))], force_terminal=True, color_system=None)
    assert "[bold]x" in text
