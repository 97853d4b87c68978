"""The front as a PNG, for a README or a slide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compressbench.core.atomic import atomic_path
from compressbench.core.formatting import bytes_text
from compressbench.results import front as fronts
from compressbench.results.front import SIZES
from compressbench.results.front_picture import (
    COLOURS,
    Picture,
    axis_title,
    byte_ticks,
    has,
    shown_across,
    tick_text,
    title_lines,
    y_range,
)
from compressbench.results.front_table import figure_text
from compressbench.results.sweep import Sweep, Trial

_INCHES, _DPI = (9.0, 5.6), 120


def write_png(picture: Picture, path: Path) -> None:
    """The same picture as the page's: trials, fronts with error bars, baseline, marks."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # no display, no global state
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    for i, sweep in enumerate(picture.sweeps):
        _draw(plot, picture, sweep, COLOURS[i % len(COLOURS)])
    _draw_marks(plot, picture)
    _scale(plot, picture)
    title, *notes = (line.replace("$", r"\$") for line in title_lines(picture))
    figure.suptitle(title, fontweight="bold", fontsize=12)
    plot.set_title("\n".join(notes), fontsize=8)
    plot.grid(color="#e6e6e6")
    plot.legend(fontsize=8, loc="lower right", markerscale=0.6)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _points(picture: Picture, trials: list[Trial]) -> tuple[list[float], list[float]]:
    axes = picture.axes
    return [t.figures[axes.x.name] for t in trials], [t.figures[axes.y.name] for t in trials]


def _draw(plot: Any, picture: Picture, sweep: Sweep, colour: str) -> None:
    axes = picture.axes
    front = [t for t in fronts.members(sweep) if has(t, axes)]
    inside = {t.number for t in front}
    others = [t for t in sweep.trials if t.number not in inside and has(t, axes)]
    single = len(picture.sweeps) == 1
    faint = "#9aa0a6" if single else colour
    for symbol, feasible, label in ((".", True, "other trials"), ("x", False, "infeasible")):
        points = _points(picture, [t for t in others if t.feasible == feasible])
        if points[0]:
            plot.plot(*points, symbol, color=faint, alpha=0.6, label=label if single else None)
    x, y = _points(picture, front)
    label = f"front of {sweep.name}".replace("$", r"\$")
    if len(sweep.objectives) == 2:
        plot.step(x, y, where="pre", color=colour, linewidth=1.6)
    errors = [
        [fronts.standard_error(t, name, sweep) for t in front]
        for name in (axes.x.name, axes.y.name)
    ]
    plot.errorbar(x, y, xerr=errors[0], yerr=errors[1], fmt="o", color=colour, label=label,
                  markersize=6, elinewidth=1, capsize=2)  # fmt: skip
    noisy = fronts.within_noise(sweep, front)
    within = _points(picture, [t for t in front if t.number in noisy])
    if within[0]:
        plot.plot(*within, "o", fillstyle="none", markersize=13, color=colour,
                  label="no better than a smaller one, within noise")  # fmt: skip
    best = fronts.knee(sweep, front)
    if best is not None and has(best, axes):
        knee = _points(picture, [best])
        plot.plot(*knee, "D", fillstyle="none", markersize=14, color="#222222", label="knee")


def _draw_marks(plot: Any, picture: Picture) -> None:
    axes, first = picture.axes, picture.sweeps[0]
    base = first.baseline
    if axes.x.name in base and axes.y.name in base:
        plot.plot(base[axes.x.name], base[axes.y.name], "*", color="#222222", markersize=13,
                  label="float baseline")  # fmt: skip
    if picture.budget_bytes is not None and axes.x.name in SIZES.values():
        label = f"budget {bytes_text(picture.budget_bytes)}"
        plot.axvline(picture.budget_bytes, linestyle="--", color="#222222", label=label)
    if picture.minimum is not None:
        text = figure_text(f"val/{first.metric}", picture.minimum, first.metric)
        plot.axhline(picture.minimum, linestyle="--", color="#777777", label=f"at least {text}")
    chosen = [t for s in picture.sweeps for t in s.trials if (s.folder, t.number) == picture.ship]
    if chosen and has(chosen[0], axes):
        plot.plot(*_points(picture, chosen), "s", fillstyle="none", markersize=17, color="#c00000",
                  label="ship this one")  # fmt: skip


def _scale(plot: Any, picture: Picture) -> None:
    axes, metric = picture.axes, picture.sweeps[0].metric
    values = shown_across(picture, axes.x.name)
    if axes.x.name in SIZES.values() and values:
        ticks = byte_ticks(min(values), max(values))
        plot.set_xscale("log", base=2)
        plot.set_xticks(ticks, [tick_text(tick) for tick in ticks])
        plot.minorticks_off()
        plot.set_xlim(min(values) / 1.15, max(values) * 1.15)
    if axes.y.name.endswith("/accuracy"):
        plot.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.1f} %")
    limits = y_range(picture)
    if limits:
        plot.set_ylim(*limits)
    plot.set_xlabel(axis_title(axes.x.name, metric))
    plot.set_ylabel(axis_title(axes.y.name, metric))
