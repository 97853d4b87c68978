"""Rows of a table as Markdown and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a table in Markdown, headings first; none without rows. Cells do not wrap."""
    if not rows:
        return []
    return [_line(rows[0]), "|" + " --- |" * len(rows[0]), *(_line(r.values()) for r in rows)]


def _line(cells: Iterable[str]) -> str:
    unbroken = (cell.replace("|", "\\|").replace(" ", "\N{NO-BREAK SPACE}") for cell in cells)
    return f"| {' | '.join(unbroken)} |"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write a column for each name that any row has, empty where a row lacks it; the path."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)
    return path
