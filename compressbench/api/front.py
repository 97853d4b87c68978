"""`compressbench.front`: the Pareto front of a sweep as a table, and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressbench.api.table import as_table
from compressbench.results.front_table import raw_rows
from compressbench.results.sweep import Sweep
from compressbench.tracking.find_sweeps import check_comparable, find

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def front(sweep: str | Path) -> Any:
    """The Pareto front of a sweep: one row a member, from the largest file to the smallest.

    Args:
        sweep: The folder of a sweep, its name (looked for below `multirun/`, `runs/`, `sweeps/`),
            or an MLflow experiment, all of whose sweeps are taken.

    Returns:
        A pandas DataFrame where pandas is installed, else a list of dicts: the trial, its figures
        and settings, whether it is the knee, and its run folder, for `compressbench.load`.

    Raises:
        UserError: Where there is no such sweep, or no complete trial yet.
    """
    return as_table([row for found in _sweeps(sweep) for row in raw_rows(found)])


def front_figure(sweep: str | Path) -> Figure:
    """The picture of `compressbench front`: all trials, the front, the knee, the baseline.

    Args:
        sweep: As for `front`.

    Returns:
        A plotly figure.
    """
    from compressbench.results.front_html import front_figure as drawn
    from compressbench.results.front_picture import Picture

    return drawn(Picture(_sweeps(sweep)))


def _sweeps(name: str | Path) -> Sequence[Sweep]:
    found = find(str(name))
    check_comparable(found)
    return found
