"""Calibrates the activation quantizers of a model on training images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass, replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from torch import nn

from compressbench.core.activation_quantizers import SiteQuantizer, attach_
from compressbench.core.activation_sites import TracedSite, site_name, trace_sites
from compressbench.core.digests import named
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.nearest import nearest_of_many
from compressbench.core.protocols import Observer
from compressbench.core.types import Context, Edit
from compressbench.quantization.grids.absurd_ranges import (
    Extremes,
    dominated,
    isolated,
    suspects,
)
from compressbench.quantization.grids.site_values import (
    Seen,
    observe_sites,
    run_images,
    site_quantizers,
)


def is_observer(value: Any) -> bool:
    """Whether `value` is a dataclass with the interface of `Observer`."""
    methods = all(callable(getattr(value, name, None)) for name in ("start", "update", "range"))
    return methods and is_dataclass(value) and not isinstance(value, type)


def quantize_activations_(
    model: nn.Module,
    observer: Observer,
    context: Context,
    *,
    bits: int,
    symmetric: bool,
    power_of_two: bool,
    images: int,
    batch_size: int,
    in_float: Sequence[str] = (),
) -> Edit:
    """Insert activation quantizers into `model`, calibrated by `observer` on training images.

    Args:
        model: Modified in place.
        observer: Finds the range of each activation.
        context: Supplies the images.
        bits: Width of the activations in bits.
        symmetric: Use ranges symmetric around zero.
        power_of_two: Round scales up to powers of two.
        images: Number of training images, of all ranks together.
        batch_size: Images per batch.
        in_float: Sites that are left in float (`left_in_float`).

    Returns:
        The `activation_grid` edit, with which later stages calibrate again. Its `calibration` has
        `left`, the rows {site, reason} of sites that stay in float since their range is absurd.
    """
    kind = type(observer)
    found = trace_sites(model, context.data.spec.blank(2))
    edit: Edit = {
        "kind": "activation_grid",
        "sites": [site.description for site in found],
        "bits": bits,
        "symmetric": symmetric,
        "power_of_two": power_of_two,
        "calibration": {
            "images": images,
            "batch_size": batch_size,
            # later stages calibrate again with the same observer
            "observer": {
                "_target_": f"{kind.__module__}.{kind.__qualname__}",
                **asdict(observer),  # type: ignore[call-overload]
            },
        },
    }
    quantizers = attach_(model, edit)
    chosen = left_in_float(edit["sites"], in_float)
    with _on_device(model, context):
        absurd = _calibrate_(model, edit, context, found)
    kept = [n for n in range(len(found)) if n not in chosen and n not in absurd]
    quantizers.drop_(set(range(len(found))) - set(kept))
    edit["calibration"]["left"] = [
        {"site": found[n].name, "reason": reason}
        for n, reason in sorted(absurd.items())
        if n not in chosen
    ]
    edit["sites"] = [found[n].description for n in kept]
    return edit


def left_in_float(sites: Sequence[Mapping[str, Any]], patterns: Sequence[str]) -> set[int]:
    """The numbers of the sites that a pattern selects: by its `site_name`, or by its layer.

    Raises UserError for a pattern without a site.
    """
    chosen: set[int] = set()
    names = [site_name(site) for site in sites]
    for pattern in patterns:
        matches = {
            number
            for number, (name, site) in enumerate(zip(names, sites, strict=True))
            if fnmatchcase(name, pattern) or (site["layer"] and site["layer"] == pattern)
        }
        if not matches:
            raise UserError(
                f"float_activations: no activation {pattern!r}{nearest_of_many(pattern, names)}"
            )
        chosen |= matches
    return chosen


def calibrate_(model: nn.Module, edit: Edit, context: Context) -> None:
    """Set the ranges of the quantizers in `model` as specified by `edit["calibration"]`.

    It has `images` (all ranks together), `batch_size` and `observer` (a `_target_` config). The
    model runs in eval mode, with its current weights and float activations. Raises
    CheckFailedError for a site whose observer saw no data, or whose range is not finite.
    """
    if edit.get("dynamic", False):
        return  # ranges are computed at run time
    with _on_device(model, context):
        _calibrate_(model, edit, context, None)


def _calibrate_(
    model: nn.Module, edit: Edit, context: Context, found: Sequence[TracedSite] | None
) -> dict[int, str]:
    """Set the ranges; return why a site has none. Without `found`, every site must have one."""
    calibration, bits = edit["calibration"], edit["bits"]
    observer: Observer = context.build(calibration["observer"])
    quantizers = site_quantizers(model)
    size = calibration["images"], calibration["batch_size"]
    seen = observe_sites(model, quantizers, observer, context, *size)
    for site, one in zip(edit["sites"], seen, strict=True):
        if one.undefined or (one.infinite and found is None):
            raise CheckFailedError(f"activation range of {site_name(site)} is not finite")
    extremes = [Extremes(one.magnitude, one.infinite) for one in seen]
    reasons = {} if found is None else dominated(found, extremes)
    for number, site in enumerate(edit["sites"]):
        if number not in reasons:
            grid = quantizers[number]
            assert isinstance(grid, SiteQuantizer)
            low, high = _range(observer, seen[number], edit, site_name(site))
            grid.set_range_(low, high, edit["power_of_two"])
    if found is not None:
        doubtful = suspects(found, extremes, reasons, bits)
        journal = context.journal.within("isolated", repr(size), *named(model.state_dict()))
        run = partial(run_images, model, replace(context, journal=journal), *size)
        reasons |= isolated(doubtful, quantizers, extremes, run, context.runtime.device)
    return reasons


def _range(observer: Observer, seen: Seen, edit: Edit, name: str) -> tuple[float, float]:
    if seen.least == 0:
        raise CheckFailedError(f"activation range of {name}: its observer saw no data")
    low, high = observer.range(seen.statistic, edit["bits"], edit["symmetric"])
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise CheckFailedError(f"activation range of {name} is [{low}, {high}], not finite")
    if edit["symmetric"]:
        low, high = -max(-low, high), max(-low, high)
    return low, high


@contextmanager
def _on_device(model: nn.Module, context: Context) -> Iterator[None]:
    model.eval().to(context.runtime.device)
    try:
        yield
    finally:
        model.cpu()
