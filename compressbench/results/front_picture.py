"""What a picture of a front shows, whatever draws it: axes, ranges, ticks, titles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compressbench.core.formatting import bytes_text
from compressbench.results import front as fronts
from compressbench.results.front import SIZES, Axes
from compressbench.results.front_table import headline
from compressbench.results.sweep import Sweep, Trial

COLOURS = ("#2a6fbb", "#d1652a", "#2e8b57", "#8b4fb3", "#b3264a", "#6b6b00")
_MARGIN = 0.08  # of the range shown, on each side


@dataclass(frozen=True)
class Picture:
    """What to draw: sweeps, marks, and where a click on a trial leads (sweep, number) -> URL."""

    sweeps: Sequence[Sweep]
    budget_bytes: float | None = None
    minimum: float | None = None  # of the metric
    ship: tuple[str, int] | None = None  # sweep's folder, trial's number: the file to ship
    links: Mapping[tuple[str, int], str] = field(default_factory=dict)

    @property
    def axes(self) -> Axes:
        return fronts.axes(self.sweeps[0])


def has(trial: Trial, axes: Axes) -> bool:
    return axes.x.name in trial.figures and axes.y.name in trial.figures


def shown_across(picture: Picture, name: str) -> list[float]:
    """What the axis across must have room for."""
    taken = [t.figures[name] for s in picture.sweeps for t in s.trials if has(t, picture.axes)]
    taken += [s.baseline[name] for s in picture.sweeps if name in s.baseline]
    return taken if picture.budget_bytes is None else [*taken, picture.budget_bytes]


def axis_title(name: str, metric: str) -> str:
    titles = {
        "size/onnx_bytes": "size of the .onnx file (each step halves it; left is smaller)",
        "size/download_bytes": "size of the download, zstd 19 (each step halves it; left is "
        "smaller)",
        "latency/speedup": "times as fast as the float model",
        f"val/{metric}": f"validation {metric} of the exported file",
    }
    return titles.get(name, name)


def byte_ticks(low: float, high: float) -> list[float]:
    """1, 2, 4, ... 512 bytes, kB, MB, ...: halvings with names that people read."""
    ticks = [unit * 2.0**k for unit in (1, 1e3, 1e6, 1e9, 1e12) for k in range(10)]
    return [tick for tick in ticks if low / 2 <= tick <= high * 2]


def tick_text(tick: float) -> str:
    """`64 kB`, without the digits that a measured size has."""
    number, _, unit = bytes_text(tick).partition(" ")
    return f"{float(number):g} {unit}"


def y_range(picture: Picture) -> list[float] | None:
    """The metric from the floor of the hypervolume up, so that useless trials do not flatten it."""
    axes, first = picture.axes, picture.sweeps[0]
    floor = fronts.floor_of(first)
    if axes.y.name != fronts.metric_name(first) or floor is None:
        return None
    taken = [t.figures[axes.y.name] for s in picture.sweeps for t in s.trials if has(t, axes)]
    taken += [s.baseline[axes.y.name] for s in picture.sweeps if axes.y.name in s.baseline]
    kept = [value for value in taken if value >= floor] or taken
    kept += [end for end in _error_ends(picture) if end >= floor]
    if not kept:
        return None
    if picture.minimum is not None:
        kept.append(picture.minimum)
    margin = _MARGIN * max(max(kept) - min(kept), 0.01)
    return [min(kept) - margin, max(kept) + margin]


def title_lines(picture: Picture) -> list[str]:
    """The title, and the lines below it, for a reader who has never seen a front."""
    axes, first = picture.axes, picture.sweeps[0]
    names = ", ".join(s.name for s in picture.sweeps)
    short = {SIZES["onnx"]: "file size", SIZES["download"]: "download size"}
    what = f"{first.metric if axes.y.name.startswith('val/') else axes.y.name} against "
    what += short.get(axes.x.name, axes.x.name)
    better = "up" if axes.y.direction == "maximize" else "down"
    better += " and left" if axes.x.direction == "minimize" else " and right"
    lines = [
        f"Each dot is a trial; {better} is better. None beats those on the line, the front.",
        "; ".join(headline(s) for s in picture.sweeps),
    ]
    shown = y_range(picture)
    hidden = shown and sum(
        t.figures[axes.y.name] < shown[0] for s in picture.sweeps for t in s.trials if has(t, axes)
    )
    if hidden:
        lines.append(f"Below the picture: {hidden}; a double click shows all.")
    return [f"{names}: {what}", *lines]


def _error_ends(picture: Picture) -> list[float]:
    """The ends of the members' error bars."""
    name = picture.axes.y.name
    return [
        trial.figures[name] + sign * fronts.standard_error(trial, name, sweep)
        for sweep in picture.sweeps
        for trial in fronts.members(sweep)
        if has(trial, picture.axes)
        for sign in (-1, 1)
    ]
