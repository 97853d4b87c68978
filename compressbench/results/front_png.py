"""Writes the front as a PNG image, for a README or a slide."""

from __future__ import annotations

from pathlib import Path

from compressbench.results import chart_drawing
from compressbench.results.front_picture import Picture, front_chart


def write_png(picture: Picture, path: Path) -> None:
    """Write the chart of the front, the same as on the HTML page."""
    chart_drawing.write_png(front_chart(picture), path)
