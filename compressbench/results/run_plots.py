"""Pictures of a run, from its report alone; they work without a network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressbench.core.formatting import (
    bytes_text,
    metric_text,
    milliseconds_text,
    times_text,
)
from compressbench.core.trees import leaves

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_SIZES = (
    ("size/onnx_bytes", "onnx file", "#2a6fbb"),
    ("size/download_bytes", "download (zstd 19)", "#d1652a"),
)
_MARGIN = 0.2  # of the range of the metric, above and below, for the names of the stages


def accuracy_against_size(report: Mapping[str, Any]) -> Figure:
    """Metric of the exported files over their bytes (log), one arrow from stage to stage.

    Filled marks are on validation data; open diamonds on test data, where those were read.
    """
    from plotly.graph_objects import Figure

    metric = report["metric"]
    figure = Figure()
    tested = any(f"test/{metric}" in s["figures"] for s in report["stages"])
    for size, label, colour in _SIZES:
        figure.add_trace(_path(report, size, label, colour))
        figure.add_trace(_points(report, "val", size, colour) | {"showlegend": False})
        if tested:
            figure.add_trace(_points(report, "test", size, colour) | {"name": f"{label}, test"})
    figure.update_xaxes(type="log", title="bytes (log scale; left is smaller)", tickformat="~s")
    percent = metric == "accuracy"
    figure.update_yaxes(title=metric, tickformat=".1%" if percent else None, range=_range(report))
    figure.update_layout(
        title=f"{report['recipe']}: {metric} against size, stage by stage",
        template="plotly_white",
        legend={"orientation": "h", "y": -0.2},
    )
    return figure


def _path(report: Mapping[str, Any], size: str, label: str, colour: str) -> dict[str, Any]:
    """Arrows from stage to stage, with their names above and below in turn.

    Along the onnx file there are none: stages that do not change its bytes lie on one another.
    """
    points = _points(report, "val", size, colour)
    names = [s["name"] for s in _taken(report, "val", size)]
    onnx = size == "size/onnx_bytes"
    return points | {
        "name": label,
        "mode": "lines+markers" if onnx else "lines+markers+text",
        "text": names,
        "textposition": ["bottom center" if i % 2 else "top center" for i in range(len(names))],
        "marker": {"size": 16, "color": colour, "symbol": "arrow", "angleref": "previous"},
        "line": {"color": colour, "width": 1.5},
    }


def _range(report: Mapping[str, Any]) -> list[float] | None:
    """The metric's range with room for text; None where no stage was measured."""
    names = [f"{split}/{report['metric']}" for split in ("val", "test")]
    taken = [s["figures"][n] for s in report["stages"] for n in names if s["figures"].get(n)]
    if not taken:
        return None
    margin = _MARGIN * max(max(taken) - min(taken), 0.005)
    return [min(taken) - margin, max(taken) + margin]


def _points(report: Mapping[str, Any], split: str, size: str, colour: str) -> dict[str, Any]:
    stages = _taken(report, split, size)
    symbol = "circle" if split == "val" else "diamond-open"
    return {
        "type": "scatter",
        "x": [s["figures"][size] for s in stages],
        "y": [s["figures"][f"{split}/{report['metric']}"] for s in stages],
        "hovertext": [_hover(s, report["metric"]) for s in stages],
        "hoverinfo": "text",
        "mode": "markers",
        "marker": {"size": 8, "color": colour, "symbol": symbol},
    }


def _taken(report: Mapping[str, Any], split: str, size: str) -> list[Mapping[str, Any]]:
    """The stages that have both figures."""
    names = {size, f"{split}/{report['metric']}"}
    return [
        s
        for s in report["stages"]
        if names <= {k for k, v in s["figures"].items() if v is not None}
    ]


def _hover(stage: Mapping[str, Any], metric: str) -> str:
    figures = stage["figures"]
    lines = [
        stage["kind"],
        f"val {metric_text(figures.get(f'val/{metric}'), metric)}, "
        f"test {metric_text(figures.get(f'test/{metric}'), metric)}",
        f"onnx {bytes_text(figures.get('size/onnx_bytes'))}, "
        f"download {bytes_text(figures.get('size/download_bytes'))}",
        f"latency {milliseconds_text(figures.get('latency/p50_ms'))}, "
        f"{times_text(figures.get('latency/speedup'))} as fast",
        *(f"{k} = {v}" for k, v in _settings(stage["settings"])),
    ]
    return f"<b>{escape(stage['name'])}</b>: " + "<br>".join(map(escape, lines))


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The options of a stage, nested ones dotted; of a `_target_` its last word."""
    found: list[tuple[str, Any]] = []
    for name, value in leaves(settings).items():
        section, _, last = name.rpartition(".")
        if last == "_target_":
            found.append((section or "stage", str(value).rpartition(".")[2]))
        elif value != {}:
            found.append((name, value))
    return found


def layer_widths(report: Mapping[str, Any]) -> Figure | None:
    """Sensitivity of layers (left to right, in the order of the forward pass) at each width, a
    logarithmic colour; squares mark the widths chosen. None without an `allocation` table.
    """
    from plotly.subplots import make_subplots

    stages = [s for s in report["stages"] if s["tables"].get("allocation")]
    if not stages:
        return None
    titles = [f"{escape(s['name'])}: {_spent(s)}" for s in stages]
    figure = make_subplots(rows=len(stages), cols=1, subplot_titles=titles)
    for number, stage in enumerate(stages, start=1):
        for trace in _width_traces(stage["tables"]["allocation"]):
            figure.add_trace(trace, row=number, col=1)
    figure.update_yaxes(title="bits of the weights", type="category", categoryorder="array",
                        categoryarray=[str(bits) for bits in range(2, 9)])  # fmt: skip
    figure.update_layout(
        template="plotly_white",
        showlegend=False,
        coloraxis={"colorscale": "YlOrRd", "colorbar": {"title": "log10 of<br>sensitivity"}},
    )
    return figure


def _spent(stage: Mapping[str, Any]) -> str:
    rows = stage["tables"]["allocation"]
    weights = sum(row["weights"] for row in rows)
    bits = sum(row["weights"] * row["bits"] for row in rows) / weights
    size = bytes_text(stage["figures"].get("size/onnx_bytes"))
    return f"{bits:.2f} bits a weight on average, onnx {size}"


def _width_traces(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The map of sensitivities, and the marks of the widths chosen."""
    prefix = "sensitivity_"
    widths = sorted(int(k.removeprefix(prefix)) for k in rows[0] if k.startswith(prefix))
    costs = [[row[f"{prefix}{bits}"] for row in rows] for bits in widths]
    layers = [escape(row["layer"]) for row in rows]
    return [
        {
            "type": "heatmap",
            "x": layers,
            "y": [str(bits) for bits in widths],
            "z": [[math.log10(cost) if cost else None for cost in line] for line in costs],
            "customdata": costs,
            "hovertemplate": "%{x}, %{y} bits: %{customdata:.3g}<extra></extra>",
            "coloraxis": "coloraxis",
        },
        {
            "type": "scatter",
            "x": layers,
            "y": [str(row["bits"]) for row in rows],
            "mode": "markers",
            "marker": {"symbol": "square-open", "size": 14, "line": {"width": 3}, "color": "#222"},
            "hovertext": [_layer_text(row) for row in rows],
            "hoverinfo": "text",
        },
    ]


def _layer_text(row: Mapping[str, Any]) -> str:
    why = "" if row["chosen"] else "<br>by a rule, not by the budget"
    size = f"{row['weights']:,} weights, {row['bytes']:,} bytes"
    return f"{escape(row['layer'])}: {row['bits']} bits<br>{size}{why}"


def write_html(figure: Figure, path: Path) -> None:
    """Write a page with the plotly script inside (about 5 MB): it opens offline, and in MLflow."""
    figure.write_html(
        path,
        include_plotlyjs=True,
        full_html=True,
        default_height="85vh",
        config={"responsive": True, "displaylogo": False},
    )
