"""What a chart shows, whatever draws it: points in series, lines across, axes, and what is said."""

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
    """A place, its standard errors (0: unknown), and what is said of it when pointed at."""

    x: float
    y: float
    text: str = ""
    link: str = ""  # where a click leads
    label: str = ""  # beside it, always shown
    x_error: float = 0.0
    y_error: float = 0.0


@dataclass(frozen=True)
class Series:
    """Points of one kind, and how they look. Series of the same name share an entry of the legend.

    `line` joins them in order: "hold" keeps the value of a point up to the next, "step" has that of
    the next at once.
    """

    name: str
    points: Sequence[Point]
    colour: str
    mark: Mark = "circle"
    size: float = 6.0  # of a mark, in points of print
    opacity: float = 1.0
    line: Line = "none"


@dataclass(frozen=True)
class Rule:
    """A dashed line across the whole chart, at a value of one axis."""

    axis: Literal["x", "y"]
    value: float
    name: str


@dataclass(frozen=True)
class Axis:
    """Its title, its unit (bytes are on a logarithmic scale), and the range that is shown."""

    title: str
    unit: Unit = "number"
    limits: tuple[float, float] | None = None  # None: whatever holds all points


@dataclass(frozen=True)
class Chart:
    """`below` says which points lie below the range of y."""

    title: str
    notes: Sequence[str]
    x: Axis
    y: Axis
    series: Sequence[Series]
    rules: Sequence[Rule] = ()
    below: str = ""

    def whole(self) -> Chart:
        """The same chart with all of its points in range."""
        return replace(self, y=replace(self.y, limits=None), below="")

    def inside(self) -> Iterator[tuple[Series, Point]]:
        """The points in range."""
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
