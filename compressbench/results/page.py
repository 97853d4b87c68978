"""Writes HTML pages of charts and tables, each a small self-contained file.

Pages work offline and in MLflow, which shows them in a sandboxed frame that can neither load other
files nor open windows: there, a click shows the link instead of opening it.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from compressbench.core.atomic import write_text_atomic
from compressbench.core.kill_points import reached
from compressbench.results.chart import Chart, Mark
from compressbench.results.chart_drawing import svg

_SIGNS: dict[Mark, str] = {
    "circle": "●",
    "ring": "○",
    "cross": "×",
    "plus": "+",
    "diamond": "◇",
    "square": "□",
    "star": "★",
}
_STYLE = """
body { margin: 1.5em auto; max-width: 70em; padding: 0 1em; font: 15px/1.45 sans-serif;
  color: #222; }
h2 { margin: 0; font-size: 1.2em; }
section { margin-bottom: 3em; }
p { margin: .2em 0; color: #555; }
[hidden] { display: none; }
svg { display: block; width: 100%; height: auto; }
[data-link] { cursor: pointer; }
.legend span { margin-right: 1.5em; white-space: nowrap; }
#box { position: fixed; padding: .5em .8em; max-width: 45em; background: #fff;
  white-space: pre-wrap; border: 1px solid #999; border-radius: 4px; font-size: 13px;
  pointer-events: none; }
#box::first-line { font-weight: bold; }
#link { position: sticky; bottom: 0; background: #fff; font-family: monospace; }
table { border-collapse: collapse; margin-top: .5em; font-size: 14px; }
th, td { padding: .2em .7em; text-align: right; border-bottom: 1px solid #e6e6e6; }
th:first-child, td:first-child, td.text, th:last-child { text-align: left; }
.bar { display: inline-block; width: 12em; background: #eee; text-align: left; }
.bar i { display: block; height: .8em; background: #2a6fbb; }
.chosen { outline: 3px solid #222; outline-offset: -3px; font-weight: bold; }
"""
_SCRIPT = """
const box = document.getElementById('box');
document.addEventListener('mouseover', event => {
  const dot = event.target.closest('[data-text]');
  box.hidden = !dot;
  if (!dot) return;
  box.textContent = dot.dataset.text;
  const place = dot.getBoundingClientRect();
  const left = place.right + 6, room = innerWidth - box.offsetWidth - 6;
  box.style.left = (left < room ? left : Math.max(0, place.left - box.offsetWidth - 6)) + 'px';
  box.style.top = Math.max(0, Math.min(place.top, innerHeight - box.offsetHeight - 6)) + 'px';
});
document.addEventListener('click', event => {
  const url = event.target.closest('[data-link]')?.dataset.link;
  if (!url || window.open(url, '_blank')) return;
  document.getElementById('link').textContent = 'copy this link to open it: ' + url;
});
document.addEventListener('dblclick', event => {
  const views = event.target.closest('section')?.querySelectorAll('.view') ?? [];
  if (views.length > 1) views.forEach(view => view.toggleAttribute('hidden'));
});
"""


def write_page(title: str, sections: Sequence[str], path: Path) -> None:
    """Write a page. `title` is plain text, `sections` are HTML."""
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}'
        f"</title>\n<style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(f"<section>{section}</section>" for section in sections)
        + f'\n<p id="link"></p><div id="box" hidden></div>\n<script>{_SCRIPT}</script>\n'
        "</body></html>\n"
    )
    write_text_atomic(path, page)
    reached("page.written")


def chart_section(chart: Chart, salt: str = "") -> str:
    """A chart with its legend; a double click also shows the points below its range."""
    notes = "".join(f"<p>{escape(note)}</p>" for note in chart.notes)
    views = _view(chart, salt, chart.below and f"Below the plot: {chart.below}; double-click to "
                  "show all points.")  # fmt: skip
    if chart.below:
        views += _view(chart.whole(), f"{salt}-whole", "All points; double-click to go back.",
                       " hidden")  # fmt: skip
    return f"<h2>{escape(chart.title)}</h2>{notes}{views}{_legend(chart)}"


def _view(chart: Chart, salt: str, note: str, state: str = "") -> str:
    said = f"<p>{escape(note)}</p>" if note else ""
    return f'<div class="view"{state}>{said}{svg(chart, salt)}</div>'


def _legend(chart: Chart) -> str:
    """The names of the series and rules, without duplicates."""
    entries = {s.name: (s.colour, _SIGNS[s.mark]) for s in reversed(chart.series) if s.name}
    ordered = {s.name: entries[s.name] for s in chart.series if s.name}
    ordered |= {rule.name: ("#222222", "┄") for rule in chart.rules}
    spans = (
        f'<span><b style="color: {escape(colour)}">{sign}</b> {escape(name)}</span> '
        for name, (colour, sign) in ordered.items()
    )
    return f'<p class="legend">{"".join(spans)}</p>'


def table_section(
    title: str, note: str, headings: Sequence[str], rows: Sequence[Sequence[str]]
) -> str:
    """A table. `rows` are HTML cells from `cell` and `bar_cell`; the other texts are plain."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    said = f"<p>{escape(note)}</p>" if note else ""
    return f"<h2>{escape(title)}</h2>{said}<table><tr>{head}</tr>\n{body}</table>"


def cell(text: str, *, kind: str = "", background: str = "", hover: str = "") -> str:
    """A `<td>` with plain text; `kind` is its CSS class, "text" or "chosen"."""
    given = {"class": kind, "style": background and f"background: {background}", "data-text": hover}
    attributes = "".join(f' {name}="{escape(value)}"' for name, value in given.items() if value)
    return f"<td{attributes}>{escape(text)}</td>"


def bar_cell(share: float) -> str:
    """A `<td>` that shows a share in [0, 1] as a number and a bar."""
    width = f"width: {100 * share:.1f}%"
    return f'<td>{100 * share:.1f} % <span class="bar"><i style="{width}"></i></span></td>'
