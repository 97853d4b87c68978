"""Limits on a pruned model: parameters, MACs, bytes and latency."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.backends import mha
from torch.nn.attention import SDPBackend, sdpa_kernel

from compressbench.core.edits import parameters
from compressbench.core.errors import CheckFailedError, LimitError, UserError
from compressbench.core.validation import is_number

# absolute; a share in (0, 1) of the value before pruning; "2x" for half of it
Limit = int | float | str
Figures = Mapping[str, float]
Trial = TypeVar("Trial")

LATENCY = "latency"  # relative to the unpruned model
_STEPS = 14  # bisection steps, to a precision of 1 / 16,384


def check_limit(name: str, value: Any) -> None:
    """Raise UserError unless `value` is an integer above 0, a share in (0, 1) or text like "2x".

    Integers are not allowed for `latency`, of which only ratios are measured.
    """
    number = "" if name == LATENCY else "an integer above 0, "
    if isinstance(value, int) and not isinstance(value, bool) and value > 0 and number:
        return
    if isinstance(value, float) and is_number(value) and 0 < value < 1:
        return
    if isinstance(value, str) and _times(value) > 1:
        return
    raise UserError(
        f'{name} must be {number}a share in (0, 1) or a factor such as "2x", got {value!r}'
    )


def most(value: Limit, before: float) -> float:
    """The largest value that a limit allows, given the value before pruning."""
    if isinstance(value, str):
        return before / _times(value)
    return value * before if isinstance(value, float) else float(value)


def _times(text: str) -> float:
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)x", text)
    return float(match[1]) if match else 0.0


@dataclass(frozen=True)
class Found:
    """Result of `least`: the trial that meets all limits, and its figures."""

    trial: Any
    figures: Figures


def least(
    trial: Callable[[float], Trial],
    figures: Callable[[Trial], Figures],
    allowed: Figures,
    highest: float,
) -> Found:
    """Bisect for the smallest share in (0, `highest`] whose figures are all within `allowed`.

    `trial` maps a share to an object of which `figures` are measured; the result is the smallest
    share only if figures do not increase with the share. Raises LimitError, with the lowest value
    that is possible, if `highest` still exceeds a limit.
    """

    def fits(measured: Figures) -> bool:
        return all(measured[name] <= allowed[name] for name in allowed)

    high = trial(highest)
    best = Found(high, figures(high))
    check_reachable(best.figures, allowed)
    low, top = 0.0, highest
    for _ in range(_STEPS):
        middle = (low + top) / 2
        tried = trial(middle)
        measured = figures(tried)
        if fits(measured):
            best, top = Found(tried, measured), middle
        else:
            low = middle
    return best


def check_reachable(lowest: Figures, allowed: Figures) -> None:
    """Raise LimitError if the `lowest` figures that are possible exceed what is allowed."""
    excess = {name: lowest[name] / allowed[name] - 1 for name in allowed}
    name = max(excess, key=lambda n: excess[n])
    if excess[name] > 0:
        raise LimitError(
            f"{name}={_text(name, allowed[name])} cannot be reached: pruning leaves at "
            f"least {_text(name, lowest[name])} (channels are kept by min_channels, "
            "max_layer_sparsity, round_to, skip or coupled=false)",
            excess[name],
        )


def missed(figures: Figures, allowed: Figures, tolerance: float) -> str | None:
    """A warning if a limit is exceeded, or all are undercut, by more than the share `tolerance`.

    Only a latency that was measured again can exceed its limit.
    """
    over = {name: figures[name] / allowed[name] - 1 for name in allowed}
    worst = max(over, key=lambda n: over[n])
    if over[worst] > tolerance:
        return (
            f"{worst} is {_text(worst, figures[worst])} when measured again, {over[worst]:.1%} "
            f"over its limit of {_text(worst, allowed[worst])}"
        )
    shortest = {name: 1 - figures[name] / allowed[name] for name in allowed}
    if min(shortest.values()) <= tolerance:
        return None
    name = min(shortest, key=lambda n: shortest[n])
    return (
        f"{name} is {_text(name, figures[name])}, {shortest[name]:.1%} below its limit of "
        f"{_text(name, allowed[name])}: channels are removed in larger steps (round_to, coupled "
        "layers, scope)"
    )


def check_not_met(before: Figures, allowed: Figures) -> None:
    """Raise UserError if the unpruned model is within all limits."""
    if all(before[name] <= allowed[name] for name in allowed):
        met = ", ".join(f"{name} is {_text(name, before[name])} already" for name in allowed)
        raise UserError(f"nothing to prune: {met}")


def _text(name: str, value: float) -> str:
    return f"{value:.3f}" if name == LATENCY else f"{value:,.0f}"


def count(model: nn.Module, example: Tensor) -> dict[str, float]:
    """The number of parameters `params`, and `macs` for one sample of `example` [B, ...]."""
    return {"params": float(parameters(model)), "macs": float(macs(model, example))}


def macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates for one sample, in convolutions, linear layers and matrix products."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), _attention_as_products(), FlopCounterMode(display=False) as counter:
        model(example[:1])
    return int(counter.get_total_flops()) // 2  # FLOPs count multiplications and additions


@contextmanager
def _attention_as_products() -> Iterator[None]:
    """Disable fused attention kernels of CPUs, which the FLOP counter does not support."""
    fast = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        mha.set_fastpath_enabled(fast)


def check_measurable(name: str, exporter: object) -> None:
    """Raise CheckFailedError if there is no exporter."""
    if exporter is None:
        raise CheckFailedError(f"{name} needs an exporter, but none is available here")
