"""Writes tables as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compressbench.core.atomic import write_text_atomic
from compressbench.core.kill_points import reached


def markdown_table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The lines of a Markdown table, headings first; [] without rows. Cells do not wrap."""
    if not rows:
        return []
    return [_line(rows[0]), "|" + " --- |" * len(rows[0]), *(_line(r.values()) for r in rows)]


def _line(cells: Iterable[str]) -> str:
    unbroken = (cell.replace("|", "\\|").replace(" ", "\N{NO-BREAK SPACE}") for cell in cells)
    return f"| {' | '.join(unbroken)} |"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write `rows` as CSV and return `path`.

    There is a column for every name in any row; cells of rows without that name are empty.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=names)
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomic(path, text.getvalue())
    reached("tables.written")
    return path
