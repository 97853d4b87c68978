"""Defines charts as data (series, axes, rules, notes), independent of how they are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from compressbench.core.formatting import bytes_text

Mark = Literal["circle", "ring", "cross", "plus", "diamond", "square", "star"]
Line = Literal["none", "straight", "step", "hold", "arrows"]
Unit = Literal["number", "percent", "bytes"]


@dataclass(frozen=True)
class Point:
    """A point with its hover text and its standard errors, 0 if unknown."""

    x: float
    y: float
    text: str = ""
    link: str = ""  # URL that a click opens
    label: str = ""  # always shown, next to the point
    x_error: float = 0.0
    y_error: float = 0.0


@dataclass(frozen=True)
class Series:
    """Points of one kind and their style. Series of the same name share one entry in the legend.

    `line` connects the points in order: "hold" keeps a value until the next point, "step" jumps to
    the value of the next point at once, "arrows" draws an arrow from each point to the next.
    """

    name: str
    points: Sequence[Point]
    colour: str
    mark: Mark = "circle"
    size: float = 6.0  # of a mark, in typographic points
    opacity: float = 1.0
    line: Line = "none"


@dataclass(frozen=True)
class Rule:
    """A dashed line across the whole chart at one value on an axis."""

    axis: Literal["x", "y"]
    value: float
    name: str


@dataclass(frozen=True)
class Axis:
    """An axis; an axis in bytes is logarithmic."""

    title: str
    unit: Unit = "number"
    limits: tuple[float, float] | None = None  # the visible range; None: all points


@dataclass(frozen=True)
class Chart:
    """A chart; `below` describes the points below the visible range of y, "" if there are none."""

    title: str
    notes: Sequence[str]
    x: Axis
    y: Axis
    series: Sequence[Series]
    rules: Sequence[Rule] = ()
    below: str = ""

    def whole(self) -> Chart:
        """A copy of the chart that shows all points."""
        return replace(self, y=replace(self.y, limits=None), below="")

    def inside(self) -> Iterator[tuple[Series, Point]]:
        """Each point in the visible range of y, with its series."""
        low, high = self.y.limits or (float("-inf"), float("inf"))
        for series in self.series:
            yield from ((series, p) for p in series.points if low <= p.y <= high)


def byte_ticks(low: float, high: float) -> list[float]:
    """Ticks for an axis in bytes: 1, 2, 4, ... 512 of each decimal unit (B, kB, MB, ...)."""
    ticks = [unit * 2.0**k for unit in (1, 1e3, 1e6, 1e9, 1e12) for k in range(10)]
    return [tick for tick in ticks if low / 2 <= tick <= high * 2]


def tick_text(tick: float) -> str:
    """The text of a tick, such as `64 kB`, without trailing zeros."""
    number, _, unit = bytes_text(tick).partition(" ")
    return f"{float(number):g} {unit}"
