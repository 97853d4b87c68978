"""Writes the front of sweeps as an HTML page with hover texts and links."""

from __future__ import annotations

from pathlib import Path

from compressbench.results import page
from compressbench.results.front_picture import Picture, front_chart, history_chart


def write_page(picture: Picture, path: Path) -> None:
    """Write the charts of the front and of its history to one page."""
    charts = [front_chart(picture), history_chart(picture.sweeps)]
    sections = [page.chart_section(chart, f"chart{i}") for i, chart in enumerate(charts)]
    page.write_page(", ".join(s.name for s in picture.sweeps), sections, path)
