"""Pictures of pruning, from a run's report alone: what layers bear, and what is left of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_PRUNES = "prune"  # how the kinds of such stages begin


def pruning_pictures(report: Mapping[str, Any]) -> dict[str, Figure]:
    """File name without suffix -> picture, of those that the report has something for."""
    found = {"sensitivity": sensitivity_curves(report), "layers_left": layers_left(report)}
    return {name: figure for name, figure in found.items() if figure is not None}


def sensitivity_curves(report: Mapping[str, Any]) -> Figure | None:
    """Accuracy against the sparsity of each layer alone, one line a layer, in the order of the
    forward pass from dark to light. None without a `sensitivity` table.
    """
    from plotly.colors import sample_colorscale
    from plotly.graph_objects import Figure

    tables = [s["tables"]["sensitivity"] for s in report["stages"] if "sensitivity" in s["tables"]]
    if not tables:
        return None
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in tables[-1]:
        lines.setdefault(row["layer"], []).append(row)
    figure = Figure()
    places = [number / max(1, len(lines) - 1) for number in range(len(lines))]
    colours = sample_colorscale("Viridis", places)
    for (layer, rows), colour in zip(lines.items(), colours, strict=True):
        figure.add_trace(_line(layer, rows, colour))
    figure.update_xaxes(title="share of the layer's weights that is zero", tickformat=".0%")
    figure.update_yaxes(title="accuracy on training images", tickformat=".0%")
    figure.update_layout(title="What each layer bears alone", template="plotly_white")
    return figure


def _line(layer: str, rows: Sequence[Mapping[str, Any]], colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "name": f"{escape(layer)} ({rows[0]['weights']:,})",
        "x": [row["sparsity"] for row in rows],
        "y": [row["accuracy"] for row in rows],
        "mode": "lines+markers",
        "line": {"color": colour},
        "customdata": [row["loss"] for row in rows],
        "hovertemplate": "%{x:.0%}: %{y:.2%}, loss %{customdata:.3f}",
    }


def layers_left(report: Mapping[str, Any]) -> Figure | None:
    """Bars: the share of each layer's weights that a pruning stage left, one panel a stage; what
    happened to the layer, channel counts for instance, when pointed at. None without such a stage.
    """
    from plotly.subplots import make_subplots

    stages = [s for s in report["stages"] if s["kind"].startswith(_PRUNES) and s["coverage"]]
    if not stages:
        return None
    titles = [escape(s["name"]) for s in stages]
    figure = make_subplots(rows=len(stages), cols=1, subplot_titles=titles)
    for number, stage in enumerate(stages, start=1):
        figure.add_trace(_bars(stage["coverage"]), row=number, col=1)
    figure.update_yaxes(title="weights left", tickformat=".0%", range=[0, 1])
    figure.update_layout(template="plotly_white", showlegend=False)
    return figure


def _bars(coverage: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [row for row in coverage if row["total"]]
    return {
        "type": "bar",
        "x": [escape(row["layer"]) for row in rows],
        "y": [1 - row["touched"] / row["total"] for row in rows],
        "hovertext": [f"{row['total']:,} weights, {escape(row['detail'])}" for row in rows],
        "marker": {"color": "#2a6fbb"},
    }
