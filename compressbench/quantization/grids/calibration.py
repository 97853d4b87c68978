"""Calibrates the activation quantizers of a model on training images."""

from __future__ import annotations

import math
from dataclasses import asdict, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compressbench.core.activation_quantizers import (
    CHILD,
    ActivationQuantizers,
    SiteQuantizer,
    attach_,
)
from compressbench.core.activation_sites import find_sites
from compressbench.core.distributed import max_over_ranks
from compressbench.core.errors import CheckFailedError
from compressbench.core.protocols import Observer
from compressbench.core.types import Context, Edit
from compressbench.data.calibration import training_images


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

    Returns:
        The `activation_grid` edit, with which later stages calibrate again.
    """
    kind = type(observer)
    edit: Edit = {
        "kind": "activation_grid",
        "sites": find_sites(model, context.data.spec.blank(2)),
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
    attach_(model, edit)
    calibrate_(model, edit, context)
    return edit


def calibrate_(model: nn.Module, edit: Edit, context: Context) -> None:
    """Set the ranges of the quantizers in `model` as specified by `edit["calibration"]`.

    It has `images` (all ranks together), `batch_size` and `observer` (a `_target_` config). The
    model runs in eval mode, with its current weights and float activations. Raises
    CheckFailedError for a site whose observer saw no data, or whose range is not finite.
    """
    if edit.get("dynamic", False):
        return  # ranges are computed at run time
    calibration = edit["calibration"]
    observer: Observer = context.build(calibration["observer"])
    quantizers = model.get_submodule(CHILD)
    if not isinstance(quantizers, ActivationQuantizers):
        kind = type(quantizers).__name__
        raise CheckFailedError(f"{CHILD} of the model must be ActivationQuantizers, got {kind}")
    grids = [grid for grid in quantizers if isinstance(grid, SiteQuantizer)]
    model.eval().to(context.runtime.device)
    try:
        statistics, seen = _observe(
            model, quantizers, observer, context, calibration["images"], calibration["batch_size"]
        )
        least = -max_over_ranks(-torch.tensor(seen, device=context.runtime.device))
        for number, site in enumerate(edit["sites"]):
            name = f"{site['function']} {site['index']} of {site['layer'] or 'the model'}"
            if least[number] == 0:
                raise CheckFailedError(f"activation range of {name}: its observer saw no data")
            low, high = observer.range(statistics[number], edit["bits"], edit["symmetric"])
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise CheckFailedError(f"activation range of {name} is [{low}, {high}], not finite")
            if edit["symmetric"]:
                low, high = -max(-low, high), max(-low, high)
            grids[number].set_range_(low, high, edit["power_of_two"])
    finally:
        model.cpu()


def _observe(
    model: nn.Module,
    quantizers: ActivationQuantizers,
    observer: Observer,
    context: Context,
    images: int,
    batch_size: int,
) -> tuple[list[Any], list[int]]:
    """The statistic of each site over this rank's images, and the number of its values."""
    statistics = [observer.start() for _ in quantizers]
    seen = [0] * len(quantizers)

    def observe(number: int, values: Tensor) -> None:
        if values.numel():
            statistics[number] = observer.update(statistics[number], values)
            seen[number] += values.numel()

    quantizers.observe = observe
    try:
        with torch.no_grad():
            for inputs in training_images(context, images, batch_size):
                model(inputs)
    finally:
        quantizers.observe = None
    return statistics, seen
