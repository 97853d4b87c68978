"""Builds sensitivity curves and tables of remaining weights from the report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from compressbench.core.formatting import metric_text
from compressbench.core.metrics import metric_of
from compressbench.results.chart import Axis, Chart, Point, Series
from compressbench.results.page import bar_cell, cell, table_section

_PRUNES = "prune"  # prefix of the kinds of pruning stages


def sensitivity_curves(report: Mapping[str, Any]) -> Chart | None:
    """The chart of quality against sparsity, one layer pruned at a time, one line per layer.

    Lines go from dark to light in the order of the forward pass. None if the report has no
    `sensitivity` table.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    tables = [s["tables"]["sensitivity"] for s in report["stages"] if "sensitivity" in s["tables"]]
    if not tables:
        return None
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for row in tables[-1]:
        lines.setdefault(row["layer"], []).append(row)
    last = max(1, len(lines) - 1)
    series = [
        _line(layer, rows, to_hex(colormaps["viridis"](0.95 * number / last)))
        for number, (layer, rows) in enumerate(lines.items())
    ]
    quality = _quality_name(tables[-1][0])
    return Chart(
        f"{quality.capitalize()} when a single layer is pruned",
        ["One line per layer, with its number of weights; from dark (first) to light (last)."],
        Axis("share of the layer's weights that are zero", "percent"),
        Axis(
            f"{quality} on training images",
            "percent" if metric_of(quality).percent else "number",
        ),
        series,
    )


def _quality_name(row: Mapping[str, Any]) -> str:
    return next(name for name in row if name not in ("layer", "weights", "sparsity", "loss"))


def _line(layer: str, rows: Sequence[Mapping[str, Any]], colour: str) -> Series:
    name = _quality_name(rows[0])
    points = [
        Point(
            row["sparsity"],
            row[name],
            f"{layer}\n{100 * row['sparsity']:.0f} % zero: {name} "
            f"{metric_text(row[name], name)}, loss {row['loss']:.3f}",
        )
        for row in rows
    ]
    return Series(f"{layer} ({rows[0]['weights']:,})", points, colour, size=4, line="straight")


def layers_left(report: Mapping[str, Any]) -> list[str]:
    """One HTML table per pruning stage: the share of weights left in each layer, with details.

    The details are those of the stage, such as channel counts.
    """
    stages = [s for s in report["stages"] if s["kind"].startswith(_PRUNES) and s["coverage"]]
    return [_left_table(s["name"], [r for r in s["coverage"] if r["total"]]) for s in stages]


def _left_table(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    total = sum(row["total"] for row in rows)
    left = total - sum(row["touched"] for row in rows)
    return table_section(
        f"{name}: {100 * left / max(total, 1):.1f} % of {total:,} weights left",
        "",
        ["layer", "weights", "left", "details"],
        [
            [
                cell(row["layer"]),
                cell(f"{row['total']:,}"),
                bar_cell(1 - row["touched"] / row["total"]),
                cell(row["detail"], kind="text"),
            ]
            for row in rows
        ],
    )
