"""`compressbench.front`: the Pareto front of a sweep as a table, and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compressbench.api.table import as_table
from compressbench.results.front_table import raw_rows
from compressbench.results.sweep import Sweep
from compressbench.tracking.find_sweeps import check_comparable, find


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


@dataclass(frozen=True)
class FrontPicture:
    """The picture of a front as a PNG file's bytes; a notebook shows it."""

    png: bytes = field(repr=False)

    def _repr_png_(self) -> bytes:
        return self.png


def front_picture(sweep: str | Path) -> FrontPicture:
    """The picture of `compressbench front --png`: trials, the front, the knee, the baseline.

    Args:
        sweep: As for `front`.

    Returns:
        The `FrontPicture`, which a notebook shows; its bytes are in `png`.

    Raises:
        UserError: As `front`.
    """
    from compressbench.results.front_picture import Picture
    from compressbench.results.front_png import write_png

    with TemporaryDirectory() as folder:
        path = Path(folder) / "front.png"
        write_png(Picture(_sweeps(sweep)), path)
        return FrontPicture(path.read_bytes())


def _sweeps(name: str | Path) -> Sequence[Sweep]:
    found = find(str(name))
    check_comparable(found)
    return found
