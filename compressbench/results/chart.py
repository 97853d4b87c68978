"""Charts as data: series of points, axes, rules and notes, independent of what draws them."""

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
    """A point with its standard errors (0 where unknown) and its hover text."""

    x: float
    y: float
    text: str = ""
    link: str = ""  # where a click leads
    label: str = ""  # beside it, always shown
    x_error: float = 0.0
    y_error: float = 0.0


@dataclass(frozen=True)
class Series:
    """Points of one kind and their style. Series of the same name share one entry in the legend.

    `line` joins the points in order: "hold" keeps each value until the next point, "step" takes the
    value of the next point at once, "arrows" draws an arrow from point to point.
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
    """A dashed line across the whole chart at one value of an axis."""

    axis: Literal["x", "y"]
    value: float
    name: str


@dataclass(frozen=True)
class Axis:
    """An axis; bytes are drawn on a logarithmic scale."""

    title: str
    unit: Unit = "number"
    limits: tuple[float, float] | None = None  # the visible range; None: all points


@dataclass(frozen=True)
class Chart:
    """A chart; `below` names the points below the visible range of y, "" for none."""

    title: str
    notes: Sequence[str]
    x: Axis
    y: Axis
    series: Sequence[Series]
    rules: Sequence[Rule] = ()
    below: str = ""

    def whole(self) -> Chart:
        """The same chart with every point in its visible range."""
        return replace(self, y=replace(self.y, limits=None), below="")

    def inside(self) -> Iterator[tuple[Series, Point]]:
        """The points in the visible range of y, each with its series."""
        low, high = self.y.limits or (float("-inf"), float("inf"))
        for series in self.series:
            yield from ((series, p) for p in series.points if low <= p.y <= high)


def byte_ticks(low: float, high: float) -> list[float]:
    """1, 2, 4, ... 512 bytes, kB, MB, ...: halvings with names that people read."""
    ticks = [unit * 2.0**k for unit in (1, 1e3, 1e6, 1e9, 1e12) for k in range(10)]
    return [tick for tick in ticks if low / 2 <= tick <= high * 2]


def tick_text(tick: float) -> str:
    """`64 kB`, without the digits that a measured size has."""
    number, _, unit = bytes_text(tick).partition(" ")
    return f"{float(number):g} {unit}"
