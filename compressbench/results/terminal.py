"""Shows the progress and the results of a run.

On a terminal there is a progress bar. In a log file or a pipe, there is one plain line at the start
and at the end of each stage, without control characters.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from compressbench.core.formatting import bytes_text, metric_text, seconds_text
from compressbench.core.kill_points import reached
from compressbench.core.types import Coverage, Step

LEAST_IMPORTANT_FIRST = ("store", "onnx smaller", "time", "MACs", "latency p50", "onnx")
_FILE_WIDTH = 120  # width if the output is not a terminal
_MOST_LAYERS = 12
_LONGEST_NAME = 24


def make_console() -> Console:
    """The console of standard output."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _FILE_WIDTH
    return Console(width=width, highlight=False)


def say(console: Console, text: str) -> None:
    """Print a line without wrapping or markup, so that paths can be copied."""
    console.print(text, markup=False, soft_wrap=True)


def warn(console: Console, text: str) -> None:
    """Print a warning without wrapping or markup."""
    console.print(f"WARNING: {text}", style="bold yellow", markup=False, soft_wrap=True)


class Terminal:
    """The progress of one run. Use as `with Terminal(names) as terminal:`.

    `names` are the stages in order; stages call `progress`.
    """

    def __init__(
        self, names: Sequence[str], metric: str = "accuracy", console: Console | None = None
    ) -> None:
        self.names, self.metric = tuple(names), metric
        self.console = console or make_console()
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task: TaskID | None = None

    def __enter__(self) -> Self:
        self.bars.start()
        self._begin(0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def _begin(self, index: int) -> None:
        if self.task is not None:
            self.bars.remove_task(self.task)
            self.task = None
        if index == len(self.names):
            return
        title = f"[{index + 1}/{len(self.names)}] {self.names[index]}"
        left = ", ".join(self.names[index + 1 :])
        if self.console.is_terminal:
            after = f"then {left}" if left else ""
            self.task = self.bars.add_task(escape(title), total=None, text=escape(after))
        else:
            self._line(f"{title} ..." + (f" (then {left})" if left else ""))

    def progress(self, done: int, total: int, text: str) -> None:
        """Update the bar: `done` of `total` parts of the stage; `text` describes the part."""
        if self.task is not None:
            self.bars.update(
                self.task, completed=done, total=total or None, text=escape(text), refresh=False
            )

    def step(self, step: Step) -> None:
        """Print the result of a finished stage with its coverage and warnings; show the next."""
        figures = step.measurement.figures
        self._line(
            f"[{step.index + 1}/{len(self.names)}] {step.name} "
            f"{'from the store' if step.hit else 'done'}, {seconds_text(step.seconds)}: "
            f"val {metric_text(figures.get(f'val/{self.metric}'), self.metric)}, "
            f"onnx {bytes_text(figures.get('size/onnx_bytes'))}, "
            f"download {bytes_text(figures.get('size/download_bytes'))}"
        )
        reached("terminal.stage_shown")
        if step.coverage:
            self.coverage(step.coverage, brief=step.hit)
        for text in step.notes:
            self._line(f"      {text}")
        for text in step.warnings:
            self.warn(text)
        self._begin(step.index + 1)

    def coverage(self, rows: Sequence[Coverage], brief: bool = False) -> None:
        """Print the layers that a stage changed and their share of the weights.

        `brief` prints the totals only.
        """
        touched = [r for r in rows if r.touched]
        total = sum(r.total for r in rows)
        share = sum(r.touched for r in rows) / total if total else 0.0
        self._line(
            f"      touched {len(touched)} of {len(rows)} layers, {100 * share:.1f} % of "
            f"{total:,} weights"
        )
        if brief:
            return
        self.table([_coverage_cells(r) for r in rows[:_MOST_LAYERS]], ("kind", "detail"))
        if len(rows) > _MOST_LAYERS:
            self._line(f"and {len(rows) - _MOST_LAYERS} more layers, all in report.json")
        untouched = [r.layer for r in rows if not r.touched]
        if untouched:
            self._line(f"not touched: {', '.join(untouched)}")

    def warn(self, text: str) -> None:
        warn(self.console, text)

    def table(
        self,
        rows: Sequence[Mapping[str, str]],
        optional: Sequence[str] = LEAST_IMPORTANT_FIRST,
    ) -> None:
        """Print rows of text as a table.

        `optional` columns are dropped in order until the table fits the width; a line below the
        table names them.
        """
        if not rows:
            return
        shown = list(rows[0])
        left_out: list[str] = []
        for name in optional:
            if self._width(_grid(rows, shown)) <= self.console.width:
                break
            if name in shown:
                shown.remove(name)
                left_out.append(name)
        self.console.print(_grid(rows, shown))
        if left_out:
            self._line(f"not shown at this width: {', '.join(left_out)}")

    def _width(self, grid: Table) -> int:
        options = self.console.options.update(max_width=10_000)
        return Measurement.get(self.console, options, grid).maximum

    def summary(
        self,
        rows: Sequence[Mapping[str, str]],
        ship: str,
        command: str = "",
        link: str = "",
        problem: str = "",
    ) -> None:
        """Print the end of a run: table, file to ship, how to open MLflow, tracking problems."""
        self.table(rows)
        reached("terminal.table_shown")
        self._line(f"file to ship: {ship}")
        if command:
            self._line(f"see it in MLflow: {command}")
        if link:
            self._line(f"{'then open' if command else 'see it in MLflow'}: {link}")
        if problem:
            self.warn(problem)

    def _line(self, text: str) -> None:
        say(self.console, text)


def _coverage_cells(row: Coverage) -> dict[str, str]:
    share = 100 * row.touched / row.total if row.total else 0.0
    return {
        "layer": row.layer,
        "kind": row.kind,
        "weights": f"{row.total:,}",
        "touched": f"{share:.1f} %",
        "detail": row.detail,
    }


def _grid(rows: Sequence[Mapping[str, str]], shown: Sequence[str]) -> Table:
    grid = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for position, name in enumerate(shown):
        grid.add_column(
            escape(name.replace(" ", "\n", 1)),
            justify="left" if position == 0 else "right",
            no_wrap=True,
            overflow="ellipsis",
            max_width=_LONGEST_NAME if position == 0 else None,
            vertical="bottom",
        )
    for row in rows:
        grid.add_row(*(escape(row[name]) for name in shown))
    return grid
