"""Measures latency in interleaved pairs with the float model, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from compressbench.core.types import Data

WARM_UP, MIN_PAIRS, MAX_PAIRS = 3, 5, 2000


@dataclass(frozen=True)
class Latency:
    """Latency of one file. `speedup` is the median over pairs of float time / this file's time."""

    p50_ms: float
    p95_ms: float
    speedup: float
    pairs: int


def first_sample(data: Data) -> NDArray[np.float32]:
    """The first validation sample, prepared as input of the file: [1, ...]."""
    inputs = data.split("validation").inputs[:1].cpu()
    sample: NDArray[np.float32] = data.prepare(inputs).contiguous().numpy()
    return sample


def measure_latency(
    onnx_path: Path,
    baseline: Path,
    sample: NDArray[Any],
    *,
    threads: int = 1,
    seconds: float = 1.5,
) -> Latency:
    """Time both files on `sample` [B, ...] for about `seconds`, alternating which runs first.

    The speed of a shared machine can drift by a factor over seconds; the two calls of a pair run
    within milliseconds, so that their ratio does not.
    """
    from compressbench.measure.session import open_session, options

    sessions = [open_session(path, options(threads)) for path in (onnx_path, baseline)]
    calls = [lambda s=s: s.run(None, {"input": sample}) for s in sessions]
    times = np.array(alternate(calls[0], calls[1], seconds))
    same = onnx_path.read_bytes() == baseline.read_bytes()
    speedup = 1.0 if same else float(np.median(times[:, 1] / times[:, 0]))
    p50, p95 = np.percentile(times[:, 0] * 1e3, [50, 95])
    return Latency(float(p50), float(p95), speedup, len(times))


def alternate(
    first: Callable[[], object], second: Callable[[], object], seconds: float
) -> list[tuple[float, float]]:
    """Call both functions in turn; return pairs of durations in seconds, (first, second)."""
    for _ in range(WARM_UP):
        first()
        second()
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(pairs) < MIN_PAIRS or (time.perf_counter() < end and len(pairs) < MAX_PAIRS):
        if len(pairs) % 2:
            b, a = _seconds(second), _seconds(first)
        else:
            a, b = _seconds(first), _seconds(second)
        pairs.append((a, b))
    return pairs


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
