"""Builds the charts of sweeps: the front, and its hypervolume over the trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from compressbench.core.formatting import bytes_text
from compressbench.core.metrics import metric_of
from compressbench.results import front as fronts
from compressbench.results.chart import Axis, Chart, Point, Rule, Series, Unit
from compressbench.results.front import SIZES, Axes
from compressbench.results.front_table import figure_text, headline, settings_text
from compressbench.results.sweep import Sweep, Trial

COLOURS = ("#2a6fbb", "#d1652a", "#2e8b57", "#8b4fb3", "#b3264a", "#6b6b00")
_FAINT, _MARK, _SHIP = "#9aa0a6", "#222222", "#c00000"
_MARGIN = 0.08  # of the range shown, on each side
_MOST_NAMED = 3  # members below the visible range that are listed


@dataclass(frozen=True)
class Picture:
    """What to show: sweeps, marks, and the links of trials, by (folder of the sweep, number)."""

    sweeps: Sequence[Sweep]
    budget_bytes: float | None = None
    minimum: float | None = None  # of the metric
    ship: tuple[str, int] | None = None  # trial to ship: folder of the sweep, number
    links: Mapping[tuple[str, int], str] = field(default_factory=dict)

    @property
    def axes(self) -> Axes:
        """The axes of the first sweep; all sweeps have the same objectives."""
        return fronts.axes(self.sweeps[0])


def front_chart(picture: Picture) -> Chart:
    """The chart of all trials, faded, with each front as a step line."""
    axes, metric = picture.axes, picture.sweeps[0].metric
    title, *notes = title_lines(picture)
    return Chart(
        title,
        notes,
        Axis(axis_title(axes.x.name, metric), _unit(axes.x.name)),
        Axis(axis_title(axes.y.name, metric), _unit(axes.y.name), y_range(picture)),
        [
            *(s for sweep, colour in _coloured(picture.sweeps)
              for s in _sweep_series(picture, sweep, colour)),
            *_baseline(picture),
            *_ship(picture),
        ],
        list(_rules(picture)),
        below_text(picture),
    )  # fmt: skip


def history_chart(sweeps: Sequence[Sweep]) -> Chart:
    """The chart of `front/hypervolume` over the finished trials."""
    notes = [
        "Hypervolume: percentage points of the metric above its floor × halvings of the size.",
        "If the curve is flat at the end, more trials hardly help.",
    ]
    series = []
    for sweep, colour in _coloured(sweeps):
        points = [
            Point(number, value, f"{sweep.name}\nafter {number} trials: {value:.2f}")
            for number, value in enumerate(fronts.history(sweep), start=1)
        ]
        series.append(Series(sweep.name, points, colour, size=2.5, line="hold"))
    highest = max((point.y for s in series for point in s.points), default=0.0)
    y = Axis("hypervolume (points × halvings)", limits=(0, 1.05 * highest or 1))
    return Chart("Hypervolume of the front", notes, Axis("finished trials"), y, series)


def _coloured(sweeps: Sequence[Sweep]) -> list[tuple[Sweep, str]]:
    return [(sweep, COLOURS[i % len(COLOURS)]) for i, sweep in enumerate(sweeps)]


def _unit(name: str) -> Unit:
    if name in SIZES.values():
        return "bytes"
    return "percent" if metric_of(name.partition("/")[2]).percent else "number"


def _sweep_series(picture: Picture, sweep: Sweep, colour: str) -> Iterator[Series]:
    """The trials of one sweep: those not on its front, the front, and its marked members."""
    single, front = len(picture.sweeps) == 1, fronts.members(sweep)
    inside = {t.number for t in front}
    yield from _others(picture, sweep, inside, _FAINT if single else colour)
    shown = [t for t in front if has(t, picture.axes)]
    yield Series(
        f"front of {sweep.name}",
        _points(picture, sweep, shown, errors=True),
        colour,
        # with more than two objectives the front is not a line in this plane
        line="step" if len(sweep.objectives) == 2 else "none",
    )
    noisy = fronts.within_noise(sweep, front)
    within = [t for t in shown if t.number in noisy]
    if within:
        name = "within noise of a smaller member"
        yield Series(name, _points(picture, sweep, within), colour, "ring", 13)
    best = fronts.knee(sweep, shown)
    if best is not None:
        yield Series("knee", _points(picture, sweep, [best]), _MARK, "diamond", 17)


def _others(picture: Picture, sweep: Sweep, inside: set[int], colour: str) -> Iterator[Series]:
    """The trials that are not on the front."""
    rest = [t for t in sweep.trials if t.number not in inside and has(t, picture.axes)]
    before = "" if len(picture.sweeps) == 1 else f"{sweep.name}: "
    complete = [t for t in rest if t.feasible and t.state == "complete"]
    outside = [t for t in rest if not t.feasible]
    stopped = [t for t in rest if t.feasible and t.state != "complete"]
    if complete:
        points = _points(picture, sweep, complete)
        yield Series(f"{before}other trials", points, colour, "circle", 4.5, 0.45)
    if outside:
        points = _points(picture, sweep, outside)
        yield Series(f"{before}outside the constraints", points, colour, "cross", 5, 0.6)
    if stopped:
        points = _points(picture, sweep, stopped)
        yield Series(f"{before}stopped early", points, colour, "plus", 6, 0.6)


def _points(
    picture: Picture, sweep: Sweep, trials: Sequence[Trial], *, errors: bool = False
) -> list[Point]:
    x, y = picture.axes.x.name, picture.axes.y.name
    return [
        Point(
            t.figures[x],
            t.figures[y],
            trial_text(t, sweep),
            _link(picture, sweep, t),
            x_error=fronts.standard_error(t, x, sweep) if errors else 0.0,
            y_error=fronts.standard_error(t, y, sweep) if errors else 0.0,
        )
        for t in trials
    ]


def _link(picture: Picture, sweep: Sweep, trial: Trial) -> str:
    known = picture.links.get((sweep.folder, trial.number))
    if known is None:
        return Path(trial.folder).absolute().as_uri() if trial.folder else ""
    return known if known.startswith(("http://", "https://")) else ""


def _baseline(picture: Picture) -> Iterator[Series]:
    axes, first = picture.axes, picture.sweeps[0]
    base = first.baseline
    if axes.x.name in base and axes.y.name in base:
        text = "\n".join(["float baseline", *_figure_lines(base, first)])
        point = Point(base[axes.x.name], base[axes.y.name], text)
        yield Series("float baseline", [point], _MARK, "star", 12)


def _ship(picture: Picture) -> Iterator[Series]:
    for sweep in picture.sweeps:
        for trial in sweep.trials:
            if (sweep.folder, trial.number) == picture.ship and has(trial, picture.axes):
                points = _points(picture, sweep, [trial])
                yield Series("to ship", points, _SHIP, "square", 22)


def _rules(picture: Picture) -> Iterator[Rule]:
    """Lines for the size budget and the minimum of the metric."""
    axes, metric = picture.axes, picture.sweeps[0].metric
    if picture.budget_bytes is not None and axes.x.name in SIZES.values():
        yield Rule("x", picture.budget_bytes, f"budget {bytes_text(picture.budget_bytes)}")
    if picture.minimum is not None:
        name = fronts.metric_name(picture.sweeps[0])
        least = "at least" if metric_of(metric).higher else "at most"
        yield Rule("y", picture.minimum, f"{least} {figure_text(name, picture.minimum, metric)}")


def trial_text(trial: Trial, sweep: Sweep) -> str:
    """Settings and figures of a trial, one per line."""
    state = "" if trial.state == "complete" else f" ({trial.state})"
    end = [trial.folder] if trial.folder else []
    lines = [*_figure_lines(trial.figures, sweep), *settings_text(trial), *end]
    return "\n".join([f"trial {trial.number}{state}", *lines])


def _figure_lines(figures: Mapping[str, float], sweep: Sweep) -> list[str]:
    names = [o.name for o in sweep.objectives]
    names += [fronts.metric_name(sweep), f"test/{sweep.metric}", *SIZES.values(), "latency/speedup"]
    return [
        f"{name} {figure_text(name, figures[name], sweep.metric)}"
        for name in dict.fromkeys(names)
        if name in figures
    ]


def has(trial: Trial, axes: Axes) -> bool:
    """Whether a trial has the figures of both axes."""
    return axes.x.name in trial.figures and axes.y.name in trial.figures


def axis_title(name: str, metric: str) -> str:
    """The title of the axis of a figure."""
    titles = {
        "size/onnx_bytes": "size of the .onnx file (each step halves it; left is smaller)",
        "size/download_bytes": "size of the download, zstd 19 (each step halves it; left is "
        "smaller)",
        "latency/speedup": "speedup over the float model",
        f"val/{metric}": f"validation {metric} of the exported file",
    }
    return titles.get(name, name)


def y_range(picture: Picture) -> tuple[float, float] | None:
    """The range of the metric that is better than the floor: useless trials would squeeze it.

    None for any other y axis, or without a floor: all trials are shown.
    """
    axes, first = picture.axes, picture.sweeps[0]
    floor = fronts.floor_of(first)
    if axes.y.name != fronts.metric_name(first) or floor is None:
        return None
    taken = [t.figures[axes.y.name] for s in picture.sweeps for t in s.trials if has(t, axes)]
    taken += [s.baseline[axes.y.name] for s in picture.sweeps if axes.y.name in s.baseline]
    good = partial(metric_of(first.metric).at_least_as_good, bound=floor)
    kept = [value for value in taken if good(value)] or taken
    kept += [end for end in _error_ends(picture) if good(end)]
    if not kept:
        return None
    if picture.minimum is not None:
        kept.append(picture.minimum)
    least = 0.01 if metric_of(first.metric).is_share else 0.01 * abs(floor)
    margin = _MARGIN * max(max(kept) - min(kept), least)
    return min(kept) - margin, max(kept) + margin


def title_lines(picture: Picture) -> list[str]:
    """The title of the chart and its notes, which explain a front to a first-time reader."""
    axes, first = picture.axes, picture.sweeps[0]
    names = ", ".join(s.name for s in picture.sweeps)
    short = {SIZES["onnx"]: "file size", SIZES["download"]: "download size"}
    what = f"{first.metric if axes.y.name.startswith('val/') else axes.y.name} against "
    what += short.get(axes.x.name, axes.x.name)
    better = "up" if axes.y.direction == "maximize" else "down"
    better += " and left" if axes.x.direction == "minimize" else " and right"
    lines = [
        f"Each dot is a trial; {better} is better. No trial beats those on the line, the front.",
        "; ".join(headline(s) for s in picture.sweeps),
    ]
    return [f"{names}: {what}", *lines]


def below_text(picture: Picture) -> str:
    """Describe the trials below the visible range: members by number, other trials as a count."""
    shown, axes = y_range(picture), picture.axes
    if shown is None:
        return ""
    members, others = [], 0
    for sweep in picture.sweeps:
        inside = {t.number for t in fronts.members(sweep)}
        low = [t for t in sweep.trials if has(t, axes) and _outside(t.figures[axes.y.name], shown)]
        members += [(sweep, t) for t in low if t.number in inside]
        others += sum(t.number not in inside for t in low)
    parts = [_member_text(picture, *pair) for pair in members[:_MOST_NAMED]]
    more = len(members) - len(parts)
    parts += [f"{more} more members"] * (more > 0)
    if others:
        parts.append(f"{others} {'other ' if parts else ''}trial{'s' * (others > 1)}")
    return ", ".join(parts[:-1]) + " and " * (len(parts) > 1) + parts[-1] if parts else ""


def _outside(value: float, shown: tuple[float, float]) -> bool:
    return value < shown[0] or value > shown[1]


def _member_text(picture: Picture, sweep: Sweep, trial: Trial) -> str:
    figures = ", ".join(
        figure_text(o.name, trial.figures[o.name], sweep.metric)
        for o in (picture.axes.x, picture.axes.y)
    )
    of = "" if len(picture.sweeps) == 1 else f" of {sweep.name}"
    return f"trial {trial.number} of the front{of} ({figures})"


def _error_ends(picture: Picture) -> list[float]:
    """Ends of the error bars of all members."""
    name = picture.axes.y.name
    return [
        trial.figures[name] + sign * fronts.standard_error(trial, name, sweep)
        for sweep in picture.sweeps
        for trial in fronts.members(sweep)
        if has(trial, picture.axes)
        for sign in (-1, 1)
    ]
