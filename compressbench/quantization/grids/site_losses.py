"""Compares the grid of each activation with the values that pass it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compressbench.core.activation_quantizers import ActivationQuantizers, SiteQuantizer
from compressbench.core.activation_sites import site_name
from compressbench.core.digests import named
from compressbench.core.distributed import max_over_ranks, sum_over_ranks
from compressbench.core.edits import activation_grid
from compressbench.core.types import Artifact, Context, Edit
from compressbench.quantization.grids.site_values import run_images, site_quantizers

TABLE = "activations"  # its name among the tables of a stage
IMAGES, BATCH = 128, 8  # few at a time: values are summed in float64
BAD = 0.2  # lost share that is worth a warning
_NAMED = 3  # sites that a warning names

Row = dict[str, Any]
_Sums = dict[str, Tensor]


@dataclass(frozen=True)
class Losses:
    """The table of a stage and its warnings."""

    tables: dict[str, Sequence[Mapping[str, Any]]]
    warnings: tuple[str, ...]


def of_artifact(artifact: Artifact, context: Context, trained: bool = False) -> Losses:
    """The losses of an artifact's activations; those that were left in float are named, too.

    There is no warning of losses if the model was `trained` with them.
    """
    edit = activation_grid(artifact.edits)
    rows = site_losses(artifact.model, edit, context)
    left = [] if edit is None else edit.get("calibration", {}).get("left", [])
    named = "; ".join(f"{row['site']}: {row['reason']}" for row in left)
    first = (f"activations left in float, since no grid fits their range: {named}",)
    tables: dict[str, Sequence[Mapping[str, Any]]] = {TABLE: rows} if rows else {}
    return Losses(tables, (*(first if left else ()), *(() if trained else _warnings(rows))))


def site_losses(model: nn.Module, edit: Edit | None, context: Context) -> list[Row]:
    """One row per static site, the largest loss first; [] without static activations.

    `lost` is the share of the variance of a channel that rounding and clipping take away, at most
    1, on average over the channels: mean_c min(1, E[(Q(x) - x)²] / Var[x]). An outlier in one
    channel, for which the signal-to-noise ratio of the whole tensor is high, shows in the others.
    Channels are those of the second or of the last axis, whichever lose more. `clipped` is the
    share of values outside of [`low`, `high`], and `sqnr_db` the signal-to-quantization-noise
    ratio 10 log10(E[x²] / E[(Q(x) - x)²]). Values are those of the model with float activations, on
    up to 128 training images.
    """
    if edit is None or edit.get("dynamic", False):
        return []
    quantizers = site_quantizers(model)
    sums: dict[int, _Sums] = {}

    def observe(number: int, values: Tensor) -> None:
        new = _sums(values.detach(), _grid(quantizers, number))
        sums[number] = _added(sums[number], new) if number in sums else new

    quantizers.observe = observe
    journal = context.journal.within("losses", *named(model.state_dict()))
    try:
        model.eval().to(context.runtime.device)
        images = min(IMAGES, int(edit["calibration"]["images"]))
        run_images(model, replace(context, journal=journal), images, BATCH, _Seen(sums))
    finally:
        quantizers.observe = None
        model.cpu()
    rows = [
        _row(site, _grid(quantizers, number), _shared(sums[number]))
        for number, site in enumerate(edit["sites"])
    ]
    return sorted(rows, key=lambda row: -row["lost"])


@dataclass(frozen=True)
class _Seen:
    """The sums of all sites as one state."""

    sums: dict[int, _Sums]

    def state_dict(self) -> dict[str, Any]:
        return {str(number): sums for number, sums in self.sums.items()}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.sums.update({int(number): sums for number, sums in state_dict.items()})


def _warnings(rows: Sequence[Row]) -> tuple[str, ...]:
    """One warning that names the sites that lose more than `BAD`, if any."""
    bad = [row for row in rows if row["lost"] > BAD]
    if not bad:
        return ()
    named = ", ".join(f"{row['site']} {100 * row['lost']:.0f} %" for row in bad[:_NAMED])
    rest = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return (
        f"rounding takes away much of the signal of an average channel of {named}{rest}: "
        "compressbench explain RUN says what each costs",
    )


def _grid(quantizers: ActivationQuantizers, number: int) -> SiteQuantizer:
    grid = quantizers[number]
    assert isinstance(grid, SiteQuantizer)
    return grid


def _ends(grid: SiteQuantizer) -> tuple[float, float]:
    """The smallest and the largest value of a grid."""
    scale, zero_point = float(grid.scale), int(grid.zero_point)
    return -zero_point * scale, (2**grid.bits - 1 - zero_point) * scale


def _sums(values: Tensor, grid: SiteQuantizer) -> _Sums:
    """For the whole tensor ("all") and for each axis of channels: [4, C], the count, Σx, Σx² and
    Σ(Q(x) - x)² of each channel; "clipped" is the number of values beyond the grid.
    """
    low, high = _ends(grid)
    half = float(grid.scale) / 2
    clipped = ((values < low - half) | (values > high + half)).sum()
    errors = (grid(values) - values).double().square()
    exact = values.double()
    axes = {str(axis): axis for axis in {1, values.ndim - 1} if 0 < axis < values.ndim}
    found = {name: _per_channel(exact, errors, axis) for name, axis in axes.items()}
    whole = _per_channel(exact.reshape(-1, 1), errors.reshape(-1, 1), 1)
    return {"clipped": clipped.double(), "all": whole, **found}


def _per_channel(exact: Tensor, errors: Tensor, axis: int) -> Tensor:
    others = [n for n in range(exact.ndim) if n != axis]
    parts = [part.sum(others) for part in (exact, exact.square(), errors)]
    return torch.stack([torch.full_like(parts[0], exact.numel() / exact.shape[axis]), *parts])


def _added(old: _Sums, new: _Sums) -> _Sums:
    """The sums of both; empty for an axis whose length differs, such as that of the batch."""
    return {
        n: old[n].to(new[n].device) + new[n] if old[n].shape == new[n].shape else old[n][:0]
        for n in old.keys() & new.keys()
    }


def _shared(sums: _Sums) -> _Sums:
    """The sums over all ranks, of the axes that have one length on all of them."""
    names = sorted(sums)
    sizes = torch.tensor([sums[n].numel() for n in names], device=sums["all"].device)
    most, least = max_over_ranks(sizes), -max_over_ranks(-sizes)
    alike = zip(names, (most == least).tolist(), least.tolist(), strict=True)
    return {n: sum_over_ranks(sums[n]).cpu() for n, same, size in alike if same and size}


def _row(site: Mapping[str, Any], grid: SiteQuantizer, sums: _Sums) -> Row:
    low, high = _ends(grid)
    count, _, squares, errors = sums["all"].flatten().tolist()
    noise = 10 * math.log10(squares / errors) if squares and errors else None
    channels = [sums[name] for name in sums if name not in ("clipped", "all")]
    return {
        "site": site_name(site),
        "low": low,
        "high": high,
        "clipped": float(sums["clipped"]) / count,
        "sqnr_db": noise,
        "lost": max(map(_lost, channels or [sums["all"]])),
    }


def _lost(sums: Tensor) -> float:
    """The lost share of the variance, averaged over the channels that vary."""
    count, total, squares, errors = sums
    variance = squares / count - (total / count).square()
    varies = variance > 1e-12 * squares / count
    if not bool(varies.any()):
        return 0.0
    return float((errors / count / variance)[varies].clamp(max=1.0).mean())
