"""Formats figures for people: 312 kB, 40.8 M, 1.93 ms, 3.8×; a dash if missing."""

from __future__ import annotations

import math
import re

from compressbench.core.metrics import metric_of

MISSING = "–"


def bytes_text(size_bytes: float | None) -> str:
    """A size in decimal units: 1 kB is 1000 bytes."""
    return _scaled(size_bytes, ("B", "kB", "MB", "GB", "TB"))


def parse_bytes(text: str) -> int:
    """Parse a size: `100kB`, `1.5 MB`, `96KiB`, or a plain number of bytes.

    k, M, G and T are powers of 1000; Ki, Mi, ... are powers of 1024. Raises ValueError with a text
    that continues "must be".
    """
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(?:([kmgt])(i?))?b?", text.strip().lower())
    if match is None:
        raise ValueError(f"a size such as 100kB, 1.5MB or 96KiB, got {text!r}")
    power = "kmgt".index(match[2]) + 1 if match[2] else 0
    return round(float(match[1]) * math.pow(1024 if match[3] else 1000, power))


def count_text(count: float | None) -> str:
    return _scaled(count, ("", "k", "M", "G", "T"))


def milliseconds_text(latency_ms: float | None) -> str:
    return MISSING if latency_ms is None else f"{_digits(latency_ms)} ms"


def seconds_text(seconds: float | None) -> str:
    if seconds is None:
        return MISSING
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def times_text(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{_digits(ratio)}×"


def metric_text(value: float | None, metric: str) -> str:
    """Accuracy in percent, any other share as a plain number, the rest with four digits."""
    if value is None:
        return MISSING
    form = metric_of(metric)
    if form.percent:
        return f"{100 * value:.2f} %"
    return f"{value:.4f}" if form.is_share else f"{value:.4g}"


def metric_with_error(value: float | None, error: float, metric: str) -> str:
    """The metric with its standard error, which is left out if it is 0."""
    text = metric_text(value, metric)
    if not error:
        return text
    form = metric_of(metric)
    if form.percent:
        return f"{text} ± {100 * error:.2f}"
    return f"{text} ± {error:.4f}" if form.is_share else f"{text} ± {error:.2g}"


def _scaled(value: float | None, units: tuple[str, ...]) -> str:
    if value is None:
        return MISSING
    for unit in units[:-1]:
        if abs(value) < 999.5:
            text = str(int(value)) if unit == units[0] else _digits(value)
            return f"{text} {unit}".rstrip()
        value /= 1000
    return f"{_digits(value)} {units[-1]}"


def _digits(value: float) -> str:
    """About three significant digits, without an exponent."""
    limits = (0.9995, 9.995, 99.95)
    decimals = 3 - sum(abs(value) >= limit for limit in limits)
    return f"{value:.{decimals}f}"
