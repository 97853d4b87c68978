"""The front of sweeps as a page, with what it takes to point at trials."""

from __future__ import annotations

from pathlib import Path

from compressbench.results import page
from compressbench.results.front_picture import Picture, front_chart, history_chart


def write_page(picture: Picture, path: Path) -> None:
    """The front, and how it grew."""
    charts = [front_chart(picture), history_chart(picture.sweeps)]
    sections = [page.chart_section(chart, f"chart{i}") for i, chart in enumerate(charts)]
    page.write_page(", ".join(s.name for s in picture.sweeps), sections, path)
