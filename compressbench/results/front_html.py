"""Pictures of sweeps: the front, and how it grew. Pages work without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressbench.core.atomic import write_text_atomic
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
from compressbench.results.front_table import figure_text, settings_text
from compressbench.results.sweep import Sweep, Trial

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_FAINT, _MARK = "#9aa0a6", "#222222"
# MLflow shows a page in a frame that may open no other: there the link is shown, to be copied
_CLICK = """
const plot = document.getElementById('{plot_id}');
plot.on('plotly_click', event => {
  const url = event.points[0].customdata;
  if (typeof url !== 'string' || !url || window.open(url, '_blank')) return;
  document.getElementById('link').textContent = 'copy to open: ' + url;
});
"""


def front_figure(picture: Picture) -> Figure:
    """All trials faint, each front as a step line that runs along what its members allow."""
    from plotly.graph_objects import Figure

    axes, single = picture.axes, len(picture.sweeps) == 1
    figure = Figure()
    for sweep, colour in _coloured(picture.sweeps):
        figure.add_traces(_sweep_traces(picture, sweep, colour, single))
    figure.add_traces(_baseline(picture))
    _add_marks(figure, picture)
    figure.update_xaxes(**_axis(axes.x.name, shown_across(picture, axes.x.name)))
    metric = picture.sweeps[0].metric
    bold, *notes = map(escape, title_lines(picture))
    title = f"<b>{bold}</b>" + "".join(f"<br><sup>{note}</sup>" for note in notes)
    figure.update_yaxes(
        title=axis_title(axes.y.name, metric),
        tickformat=".1%" if axes.y.name.endswith("/accuracy") else None,
        range=y_range(picture),
    )
    figure.update_layout(
        title={"text": title, "x": 0.02},
        template="plotly_white",
        hovermode="closest",
        legend={"orientation": "h", "y": -0.18},
        margin={"t": 110, "r": 30},
    )
    return figure


def _coloured(sweeps: Sequence[Sweep]) -> list[tuple[Sweep, str]]:
    return [(sweep, COLOURS[i % len(COLOURS)]) for i, sweep in enumerate(sweeps)]


def _sweep_traces(
    picture: Picture, sweep: Sweep, colour: str, single: bool
) -> list[dict[str, Any]]:
    front = fronts.members(sweep)
    noisy, inside = fronts.within_noise(sweep, front), {t.number for t in front}
    rest = [t for t in sweep.trials if t.number not in inside and has(t, picture.axes)]
    label = escape(sweep.name)
    groups = [
        ("other trials", [t for t in rest if t.feasible and t.state == "complete"], "circle"),
        ("outside the constraints", [t for t in rest if not t.feasible], "x-thin-open"),
        ("stopped early", [t for t in rest if t.feasible and t.state != "complete"], "cross-thin"),
    ]
    traces = [
        _dots(picture, sweep, trials)
        | {
            "name": name if single else f"{label}: {name}",
            "marker": {"size": 7, "color": _FAINT if single else colour, "symbol": symbol,
                       "line": {"width": 1.5, "color": _FAINT if single else colour}},
            "opacity": 0.45,
        }
        for name, trials, symbol in groups
        if trials
    ]  # fmt: skip
    front = [t for t in front if has(t, picture.axes)]
    traces.append(_front(picture, sweep, front, colour) | {"name": f"front of {label}"})
    within = [t for t in front if t.number in noisy]
    if within:
        ring = {"size": 17, "symbol": "circle-open", "color": colour, "line": {"width": 1.5}}
        traces.append(
            _dots(picture, sweep, within)
            | {"name": "no better than a smaller one, within noise", "marker": ring}
        )
    best = fronts.knee(sweep, front)
    if best is not None and has(best, picture.axes):
        diamond = {"size": 22, "symbol": "diamond-open", "color": _MARK, "line": {"width": 2}}
        traces.append(_dots(picture, sweep, [best]) | {"name": "knee", "marker": diamond})
    return traces


def _dots(picture: Picture, sweep: Sweep, trials: Sequence[Trial]) -> dict[str, Any]:
    axes = picture.axes
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [t.figures[axes.x.name] for t in trials],
        "y": [t.figures[axes.y.name] for t in trials],
        "hovertext": [hover(t, sweep) for t in trials],
        "hoverinfo": "text",
        "customdata": [_link(picture, sweep, t) for t in trials],
    }


def _link(picture: Picture, sweep: Sweep, trial: Trial) -> str:
    known = picture.links.get((sweep.folder, trial.number))
    if known is None:
        return Path(trial.folder).absolute().as_uri() if trial.folder else ""
    return known if known.startswith(("http://", "https://")) else ""


def _front(picture: Picture, sweep: Sweep, front: Sequence[Trial], colour: str) -> dict[str, Any]:
    """Members with error bars, from the worst across to the best: between two of them holds what
    the better one across gives. With more than two objectives a line would not be theirs.
    """
    axes = picture.axes
    errors = {
        side: [fronts.standard_error(t, o.name, sweep) for t in front]
        for side, o in (("x", axes.x), ("y", axes.y))
    }
    bars = {
        f"error_{side}": {"array": values, "thickness": 1, "width": 3, "color": colour}
        for side, values in errors.items()
        if any(values)
    }
    return (
        _dots(picture, sweep, front)
        | bars
        | {
            "mode": "lines+markers" if len(sweep.objectives) == 2 else "markers",
            "line": {"shape": "vh", "color": colour, "width": 2},
            "marker": {"size": 10, "color": colour},
        }
    )


def _baseline(picture: Picture) -> list[dict[str, Any]]:
    axes = picture.axes
    base = picture.sweeps[0].baseline
    if axes.x.name not in base or axes.y.name not in base:
        return []
    figures = "<br>".join(_figure_lines(base, picture.sweeps[0]))
    return [
        {
            "type": "scatter",
            "mode": "markers+text",
            "name": "float baseline",
            "x": [base[axes.x.name]],
            "y": [base[axes.y.name]],
            "text": ["baseline"],
            "textposition": "bottom center",
            "hovertext": [f"<b>float baseline</b><br>{figures}"],
            "hoverinfo": "text",
            "marker": {"size": 14, "symbol": "star", "color": _MARK},
        }
    ]


def _add_marks(figure: Figure, picture: Picture) -> None:
    """Budget and minimum as dashed lines, and an arrow to the file to ship."""
    dashed = {"line_dash": "dash", "line_color": _MARK, "line_width": 1}
    if picture.budget_bytes is not None and picture.axes.x.name in SIZES.values():
        figure.add_vline(picture.budget_bytes, **dashed)
        figure.add_annotation(  # on a logarithmic axis the place of a text is the logarithm
            x=math.log10(picture.budget_bytes), y=1, yref="paper", yanchor="bottom",
            text=f"budget {bytes_text(picture.budget_bytes)}", showarrow=False,
        )  # fmt: skip
    if picture.minimum is not None:
        metric = picture.sweeps[0].metric
        text = f"at least {figure_text(f'val/{metric}', picture.minimum, metric)}"
        figure.add_hline(picture.minimum, annotation_text=text, **dashed)
    for sweep in picture.sweeps:
        for trial in sweep.trials:
            if (sweep.folder, trial.number) == picture.ship and has(trial, picture.axes):
                figure.add_trace(
                    _dots(picture, sweep, [trial])
                    | {
                        "name": "ship this one",
                        "mode": "markers+text",
                        "text": ["ship this one"],
                        "textposition": "top left",
                        "marker": {"size": 20, "symbol": "square-open", "color": "#c00000",
                                   "line": {"width": 2.5}},
                        "textfont": {"color": "#c00000"},
                    }
                )  # fmt: skip


def hover(trial: Trial, sweep: Sweep) -> str:
    """Settings and figures of a trial; text from outside is escaped."""
    lines = _figure_lines(trial.figures, sweep)
    state = "" if trial.state == "complete" else f" ({trial.state})"
    head = f"<b>trial {trial.number}</b>{state}"
    end = [trial.folder] if trial.folder else []
    return "<br>".join([head, *map(escape, [*lines, *settings_text(trial), *end])])


def _figure_lines(figures: Mapping[str, float], sweep: Sweep) -> list[str]:
    names = [o.name for o in sweep.objectives]
    names += [fronts.metric_name(sweep), f"test/{sweep.metric}", *SIZES.values(), "latency/speedup"]
    return [
        f"{name} {figure_text(name, figures[name], sweep.metric)}"
        for name in dict.fromkeys(names)
        if name in figures
    ]


def _axis(name: str, values: Sequence[float]) -> dict[str, Any]:
    if name not in SIZES.values() or not values:
        return {"title": axis_title(name, "")}
    ticks = byte_ticks(min(values), max(values))
    return {
        "title": axis_title(name, ""),
        "type": "log",
        "tickvals": ticks,
        "ticktext": [tick_text(tick) for tick in ticks],
    }


def history_figure(sweeps: Sequence[Sweep]) -> Figure:
    """`front/hypervolume` over finished trials."""
    from plotly.graph_objects import Figure

    figure = Figure()
    for sweep, colour in _coloured(sweeps):
        values = fronts.history(sweep)
        figure.add_scatter(
            x=list(range(1, len(values) + 1)),
            y=values,
            name=escape(sweep.name),
            mode="lines",
            line={"shape": "hv", "color": colour, "width": 2},
            showlegend=len(sweeps) > 1,
        )
    note = (
        "Hypervolume: points of the metric above its floor × halvings of the size. "
        "Flat at the end: more trials hardly help."
    )
    figure.update_layout(
        title={"text": f"<b>How the front grew</b><br><sup>{note}</sup>", "x": 0.02},
        template="plotly_white",
        xaxis_title="finished trials",
        yaxis_title="hypervolume (points × halvings)",
    )
    figure.update_yaxes(rangemode="tozero")
    return figure


def write_page(picture: Picture, path: Path) -> None:
    """Write both pictures as one page with the plotly script inside (about 5 MB)."""
    options: dict[str, Any] = {
        "full_html": False,
        "config": {"responsive": True, "displaylogo": False},
    }
    front = front_figure(picture).to_html(
        include_plotlyjs=True, default_height="78vh", post_script=_CLICK, **options
    )
    grown = history_figure(picture.sweeps).to_html(
        include_plotlyjs=False, default_height="50vh", **options
    )
    title = escape(", ".join(s.name for s in picture.sweeps))
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'</head>\n<body style="margin: 0">\n{front}\n'
        f'<p id="link" style="margin: 0 2em; font-family: monospace"></p>\n'
        f"{grown}\n</body></html>\n"
    )
    write_text_atomic(path, page)
