"""Shows the progress of a sweep.

On a terminal, one block is redrawn with trials, store hits, hypervolume, time left and the front.
In a log file or a pipe, there is one plain line per finished trial, without control characters.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from compressbench.core.formatting import MISSING, bytes_text, seconds_text
from compressbench.results import front as fronts
from compressbench.results.front_table import (
    figure_text,
    headline,
    legend,
    settings_text,
    short_name,
    size_title,
    smaller_text,
    text_rows,
)
from compressbench.results.sweep import FINISHED, Sweep, Trial
from compressbench.results.terminal import Terminal, make_console, say, warn

_FRONT_LINES = 8
_RECENT = 20  # number of trials from which the remaining time is estimated
_BAR_WIDTH = 20


class SweepView:
    """The progress of a sweep. Use as `with SweepView() as view:` and call `view.update(sweep)`."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or make_console()
        self.live = Live(console=self.console, auto_refresh=False)
        self.said: set[int] = set()

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.stop()

    def update(self, sweep: Sweep) -> None:
        """Redraw the block, or print the lines of the trials finished since the last call."""
        if self.console.is_terminal:
            self.live.update(block(sweep), refresh=True)
            return
        if not self.said:
            say(self.console, f"{sweep.name}: {counts(sweep)}")
            self.said = {-1, *(t.number for t in sweep.trials if t.state in FINISHED)}
            return
        for trial in fronts.finished(sweep):
            if trial.number not in self.said:
                self.said.add(trial.number)
                say(self.console, trial_line(trial, sweep))

    def warn(self, text: str) -> None:
        warn(self.console, text)


def counts(sweep: Sweep) -> str:
    """`12 of 40 trials done, 2 running, 1 failed; 31 of 60 stages from the store`."""
    states = [trial.state for trial in sweep.trials]
    done = sum(state in FINISHED for state in states)
    parts = [f"{done} of {sweep.n_trials} trials done"]
    named = {
        "running": "running", "failed": "failed", "infeasible": "infeasible",
        "pruned": "stopped early",
    }  # fmt: skip
    parts += [f"{states.count(s)} {text}" for s, text in named.items() if s in states]
    infeasible = sum(not t.feasible for t in sweep.trials if t.state == "complete")
    parts += [f"{infeasible} outside the constraints"] * bool(infeasible)
    stages, hits = (sum(getattr(t, name) for t in sweep.trials) for name in ("stages", "hits"))
    stored = f"; {hits} of {stages} stages from the store" if stages else ""
    return ", ".join(parts) + stored


def seconds_left(sweep: Sweep) -> float | None:
    """Estimate the remaining time from the median of recent trials and the busy workers."""
    done = fronts.finished(sweep)
    taken = [t.seconds for t in done if t.seconds > 0][-_RECENT:]
    running = sum(t.state == "running" for t in sweep.trials)
    left = max(sweep.n_trials - len(done), 0)
    if not left:
        return 0.0
    return statistics.median(taken) * left / max(running, 1) if taken else None


def summary(sweep: Sweep) -> str:
    """`5 on the front, hypervolume 63.0, about 3 min 20 s left`."""
    volume, left = fronts.hypervolume(sweep), seconds_left(sweep)
    front = len(fronts.members(sweep))
    covered = MISSING if volume is None else f"{volume:.1f}"
    more = "" if left == 0 else f", about {seconds_text(left)} left"
    return f"{front} on the front, hypervolume {covered}{more}"


def trial_line(trial: Trial, sweep: Sweep) -> str:
    """The line of a finished trial: its state and figures, and the progress of the sweep."""
    done = sum(t.state in FINISHED for t in sweep.trials)
    named = {"complete": "done", "pruned": "stopped early", "failed": "failed"}
    state = named.get(trial.state, trial.state)
    figures = ", ".join(
        f"{o.name} {figure_text(o.name, trial.figures.get(o.name), sweep.metric)}"
        for o in sweep.objectives
    )
    what = figures if trial.state == "complete" else trial.reason
    settings = ", ".join(settings_text(trial))
    return (
        f"[{done}/{sweep.n_trials}] trial {trial.number} {state}, {seconds_text(trial.seconds)}: "
        f"{what} ({settings}); {summary(sweep)}"
    )


def block(sweep: Sweep) -> RenderableType:
    """The whole view: progress, hypervolume and a table of the front."""
    done = sum(t.state in FINISHED for t in sweep.trials)
    full = min(round(_BAR_WIDTH * done / max(sweep.n_trials, 1)), _BAR_WIDTH)
    return Group(
        Text(f"{sweep.name}: {counts(sweep)}", no_wrap=True, overflow="ellipsis"),
        Text(f"{'━' * full}{'╌' * (_BAR_WIDTH - full)} {summary(sweep)}", no_wrap=True),
        _front(sweep),
    )


def _front(sweep: Sweep) -> RenderableType:
    """Members from the largest to the smallest; an even selection if there are many."""
    front = fronts.members(sweep)
    if not front:
        return Text("no complete trial yet", style="dim")
    best, noisy = fronts.knee(sweep, front), fronts.within_noise(sweep, front)
    rows: list[tuple[str, ...]] = [
        ("trial", sweep.metric, size_title(sweep), "smaller", "", "settings")
    ]
    rows += [_cells(t, sweep, t is best, t.number in noisy) for t in _evenly(front)]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, *cells in list(zip(*rows, strict=True))[:-1]:
        table.add_column(name, justify="right", no_wrap=True, min_width=max(map(len, cells)))
    table.add_column("settings", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows[1:]:
        table.add_row(*map(Text, row))
    return table


def _cells(trial: Trial, sweep: Sweep, knee: bool, noisy: bool) -> tuple[str, ...]:
    size, metric = fronts.size_name(sweep), fronts.metric_name(sweep)
    return (
        str(trial.number),
        figure_text(metric, trial.figures.get(metric), sweep.metric),
        bytes_text(trial.figures.get(size)),
        smaller_text(sweep, trial.figures),
        "knee" if knee else "≈" * noisy,
        ", ".join(settings_text(trial)),
    )


def _evenly(front: list[Trial]) -> list[Trial]:
    if len(front) <= _FRONT_LINES:
        return front
    step = (len(front) - 1) / (_FRONT_LINES - 1)
    return [front[round(i * step)] for i in range(_FRONT_LINES)]


def show(sweeps: Sequence[Sweep]) -> None:
    """Print the front of each sweep as a table."""
    terminal = Terminal([], console=make_console())
    for sweep in sweeps:
        print(headline(sweep))
        rows = text_rows(sweep)
        settings = [short_name(name) for trial in sweep.trials for name in trial.settings]
        terminal.table(rows, optional=list(dict.fromkeys(settings))[::-1])
        for line in legend(rows):
            print(line)
