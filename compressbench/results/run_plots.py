"""Writes the HTML pages of a run from its report; they work offline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressbench.core.formatting import (
    bytes_text,
    metric_text,
    milliseconds_text,
    times_text,
)
from compressbench.core.metrics import metric_of
from compressbench.core.trees import leaves
from compressbench.results.chart import Axis, Chart, Point, Series
from compressbench.results.page import cell, chart_section, table_section, write_page
from compressbench.results.pruning_plots import layers_left, sensitivity_curves

_SIZES = (
    ("size/onnx_bytes", "onnx file", "#2a6fbb"),
    ("size/download_bytes", "download (zstd 19)", "#d1652a"),
)
_MARGIN = 0.2  # of the range of the metric, above and below, as room for the names of stages
_PREFIX = "sensitivity_"  # columns of the allocation table are this prefix and the bits
_RULE = "set by a rule, not by the budget"


def write_pages(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the pages for which the report has data; return their paths."""
    curves = sensitivity_curves(report)
    pages = {
        "accuracy_size": [chart_section(accuracy_against_size(report))],
        "layer_widths": layer_widths(report),
        "layers_left": layers_left(report),
        "sensitivity": [] if curves is None else [chart_section(curves)],
    }
    written = []
    for name, sections in pages.items():
        if sections:
            written.append(folder / f"{name}.html")
            write_page(f"{report['recipe']}: {name.replace('_', ' ')}", sections, written[-1])
    return written


def accuracy_against_size(report: Mapping[str, Any]) -> Chart:
    """The chart of the metric of each exported file over its size, with arrows between stages.

    Filled marks are validation data; open marks are test data, for the stages measured on it.
    """
    metric = report["metric"]
    series = []
    for size, label, colour in _SIZES:
        # No names at the onnx sizes, where stages that do not change the bytes would overlap
        points = _points(report, "val", size, labelled=size != _SIZES[0][0])
        series.append(Series(label, points, colour, line="arrows"))
        tested = _points(report, "test", size, labelled=False)
        if tested:
            series.append(Series(f"{label}, test", tested, colour, "diamond", 7))
    return Chart(
        f"{report['recipe']}: {metric} against size, stage by stage",
        [],
        Axis("size of the file (each step halves it; left is smaller)", "bytes"),
        Axis(metric, "percent" if metric_of(metric).percent else "number", _range(report)),
        series,
    )


def _range(report: Mapping[str, Any]) -> tuple[float, float] | None:
    """The range of the metric, with room for text; None if no stage was measured."""
    names = [f"{split}/{report['metric']}" for split in ("val", "test")]
    taken = [s["figures"][n] for s in report["stages"] for n in names if s["figures"].get(n)]
    if not taken:
        return None
    least = 0.005 if metric_of(report["metric"]).is_share else 0.005 * max(map(abs, taken))
    margin = _MARGIN * max(max(taken) - min(taken), least)
    return min(taken) - margin, max(taken) + margin


def _points(report: Mapping[str, Any], split: str, size: str, *, labelled: bool) -> list[Point]:
    """One point per stage that has both figures."""
    metric = report["metric"]
    taken = [(s, s["figures"].get(size), s["figures"].get(f"{split}/{metric}"))
             for s in report["stages"]]  # fmt: skip
    return [
        Point(x, y, _stage_text(stage, metric), label=stage["name"] if labelled else "")
        for stage, x, y in taken
        if x is not None and y is not None
    ]


def _stage_text(stage: Mapping[str, Any], metric: str) -> str:
    figures = stage["figures"]
    lines = [
        f"{stage['name']}: {stage['kind']}",
        f"val {metric_text(figures.get(f'val/{metric}'), metric)}, "
        f"test {metric_text(figures.get(f'test/{metric}'), metric)}",
        f"onnx {bytes_text(figures.get('size/onnx_bytes'))}, "
        f"download {bytes_text(figures.get('size/download_bytes'))}",
        f"latency {milliseconds_text(figures.get('latency/p50_ms'))}, "
        f"speedup {times_text(figures.get('latency/speedup'))}",
        *(f"{k} = {v}" for k, v in _settings(stage["settings"])),
    ]
    return "\n".join(lines)


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The options of a stage under dotted names; of a `_target_`, only its last part."""
    options: list[tuple[str, Any]] = []
    for name, value in leaves(settings).items():
        section, _, last = name.rpartition(".")
        if last == "_target_":
            options.append((section or "stage", str(value).rpartition(".")[2]))
        elif value != {}:
            options.append((name, value))
    return options


def layer_widths(report: Mapping[str, Any]) -> list[str]:
    """One HTML table per stage with an `allocation`: sensitivities at each width, chosen width.

    Layers are in the order of the forward pass.
    """
    stages = [s for s in report["stages"] if s["tables"].get("allocation")]
    return [_widths_table(s["name"], s["tables"]["allocation"], s["figures"]) for s in stages]


def _widths_table(
    name: str, rows: Sequence[Mapping[str, Any]], figures: Mapping[str, float]
) -> str:
    tried = {int(k.removeprefix(_PREFIX)) for k in rows[0] if k.startswith(_PREFIX)}
    widths = sorted(tried | {row["bits"] for row in rows})
    costs = [cost for row in rows for bits in tried if (cost := row[f"{_PREFIX}{bits}"])]
    weights = sum(row["weights"] for row in rows)
    mean = sum(row["weights"] * row["bits"] for row in rows) / weights
    size = bytes_text(figures.get("size/onnx_bytes"))
    return table_section(
        f"{name}: {mean:.2f} bits per weight on average, onnx {size}",
        "Columns of widths: the sensitivity of the layer at that width, darker for higher values "
        "(log scale). The chosen width is framed.",
        ["layer", "weights", "bytes", *(f"{bits} bits" for bits in widths), "chosen"],
        [
            [
                cell(row["layer"]),
                cell(f"{row['weights']:,}"),
                cell(f"{row['bytes']:,}"),
                *(_width_cell(row, bits, costs) for bits in widths),
                cell(f"{row['bits']} bits" + ("" if row["chosen"] else f", {_RULE}"), kind="text"),
            ]
            for row in rows
        ],
    )


def _width_cell(row: Mapping[str, Any], bits: int, costs: Sequence[float]) -> str:
    """A cell with the sensitivity at a width, coloured on a log scale from white to red."""
    cost = row.get(f"{_PREFIX}{bits}")
    background = ""
    if cost:
        low, high = math.log10(min(costs)), math.log10(max(costs))
        part = (math.log10(cost) - low) / (high - low) if high > low else 0.0
        background = f"rgba(209, 60, 42, {0.75 * part:.2f})"
    kind = "chosen" if bits == row["bits"] else ""
    return cell("" if cost is None else f"{cost:.2g}", kind=kind, background=background)
