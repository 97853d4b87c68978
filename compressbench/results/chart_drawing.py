"""Draws charts with matplotlib, without a display: PNG files, and SVG elements for HTML pages."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressbench.core.atomic import atomic_path
from compressbench.results.chart import Axis, Chart, Mark, Point, Series, byte_ticks, tick_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES, _PNG_DPI, _SVG_DPI = (9.0, 5.6), 120, 72  # matplotlib writes SVG with 72 dots per inch
_FADED = "#e6e6e6"
_MARKS: dict[Mark, tuple[str, bool]] = {  # matplotlib's marker, and whether it is filled
    "circle": ("o", True),
    "ring": ("o", False),
    "cross": ("x", True),
    "plus": ("+", True),
    "diamond": ("D", False),
    "square": ("s", False),
    "star": ("*", True),
}
_ROOM = 1.25  # factor between the outermost points and the ends of an axis in bytes
_REACH = 9  # radius around a point in which the mouse shows its text, in typographic points


def write_png(chart: Chart, path: Path) -> None:
    """Draw a chart with its title, notes and legend to a PNG file."""
    with _settings(""):
        figure, plot = _draw(chart, _PNG_DPI)
        below = [f"Below the plot: {chart.below}."] if chart.below else []
        figure.suptitle(chart.title, fontweight="bold", fontsize=12)
        plot.set_title("\n".join([*chart.notes, *below]), fontsize=8)
        handles, names = plot.get_legend_handles_labels()
        if names:
            figure.legend(handles, names, fontsize=8, loc="outside lower center", ncols=4,
                          frameon=False, markerscale=0.6)  # fmt: skip
        with atomic_path(path) as partial:
            figure.savefig(partial, format="png")


def svg(chart: Chart, salt: str) -> str:
    """Draw a chart as an `<svg>` element, without title, notes and legend.

    A transparent circle over each point has its hover text and link as `data-text` and
    `data-link`. Each chart on a page needs a different `salt`, or the element ids collide.
    """
    with _settings(salt):
        figure, plot = _draw(chart, _SVG_DPI)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        height = figure.bbox.height
        named = {(p.x, p.y, p.text): p for _, p in chart.inside() if p.text}  # no duplicates
        targets = "".join(
            _target(point, plot.transData.transform((point.x, point.y)), height)
            for point in named.values()
        )
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :].replace("</svg>", f"{targets}</svg>")


def _target(point: Point, place: tuple[float, float], height: float) -> str:
    across, up = place
    link = f' data-link="{escape(point.link)}"' if point.link else ""
    return (
        f'<circle cx="{across:.1f}" cy="{height - up:.1f}" r="{_REACH}" fill="transparent" '
        f'data-text="{escape(point.text)}"{link}/>\n'
    )


@contextmanager
def _settings(salt: str) -> Iterator[None]:
    """Settings for plain `$` signs (no formulas), text as text in SVG, and reproducible ids."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": salt,
                     "font.family": ["DejaVu Sans", "sans-serif"]}):  # fmt: skip
        yield


def _draw(chart: Chart, dpi: int) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=_INCHES, dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    named: set[str] = set()
    for series in chart.series:
        _draw_series(plot, series, None if series.name in named else series.name)
        named.add(series.name)
    for rule in chart.rules:
        draw = plot.axvline if rule.axis == "x" else plot.axhline
        draw(rule.value, linestyle="--", linewidth=1, color="#222222", label=rule.name)
    inside = [point.x for _, point in chart.inside()]
    across = inside or [p.x for s in chart.series for p in s.points]
    across += [rule.value for rule in chart.rules if rule.axis == "x"]
    _scale(plot, plot.xaxis, chart.x, across)
    _scale(plot, plot.yaxis, chart.y, [])
    plot.grid(color=_FADED)
    plot.set_axisbelow(True)
    plot.spines[["top", "right"]].set_visible(False)
    return figure, plot


def _draw_series(plot: Any, series: Series, name: str | None) -> None:
    x, y = [p.x for p in series.points], [p.y for p in series.points]
    mark, filled = _MARKS[series.mark]
    line = {"straight": "default", "step": "steps-pre", "hold": "steps-post"}.get(series.line)
    plot.plot(x, y, mark, linestyle="-" if line else "none", drawstyle=line or "default",
              color=series.colour, alpha=series.opacity, markersize=series.size,
              fillstyle="full" if filled else "none", markeredgewidth=1.5, label=name)  # fmt: skip
    errors = [(p.x_error, p.y_error) for p in series.points]
    if any(any(pair) for pair in errors):
        x_errors, y_errors = zip(*errors, strict=True)
        plot.errorbar(x, y, xerr=x_errors, yerr=y_errors, fmt="none", ecolor=series.colour,
                      elinewidth=1, capsize=2)  # fmt: skip
    if series.line == "arrows":
        style = {"arrowstyle": "-|>", "color": series.colour, "shrinkA": 0, "shrinkB": 3}
        for a, b in zip(series.points, series.points[1:], strict=False):
            if (a.x, a.y) != (b.x, b.y):
                plot.annotate("", (b.x, b.y), (a.x, a.y), arrowprops=style)
    for number, point in enumerate(series.points):
        if point.label:  # on the left, above and below in turn
            plot.annotate(point.label, (point.x, point.y), (-8, -12 if number % 2 else 5),
                          textcoords="offset points", ha="right", fontsize=9,
                          color=series.colour)  # fmt: skip


def _scale(plot: Any, side: Any, axis: Axis, values: list[float]) -> None:
    """Title, range and ticks of one axis; an axis in bytes covers `values`."""
    name = side.axis_name
    if axis.unit == "bytes" and values:
        low, high = min(values) / _ROOM, max(values) * _ROOM
        ticks = byte_ticks(low, high)
        plot.set(**{f"{name}scale": "log"})
        side.set_ticks(ticks, [tick_text(tick) for tick in ticks])
        plot.minorticks_off()
        plot.set(**{f"{name}lim": (low, high)})
    if axis.unit == "percent":
        side.set_major_formatter(lambda value, _: f"{100 * value:.4g} %")
    if axis.limits:
        plot.set(**{f"{name}lim": axis.limits})
    side.set_label_text(axis.title)
