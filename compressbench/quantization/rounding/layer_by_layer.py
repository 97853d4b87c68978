"""Rounds layers in order, each on inputs from the layers already rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from compressbench.analysis.input_moments import Moments
from compressbench.analysis.layer_inputs import WorkingCopies, layer_moments
from compressbench.core.grid import Grid, GridWeight, on_cpu
from compressbench.core.types import Context


def rounded_in_order(
    models: WorkingCopies,
    grids: Mapping[str, Grid],
    rounding: Callable[[Moments, Grid], GridWeight],
    context: Context,
    images: int,
    drift: bool = True,
) -> dict[str, GridWeight]:
    """Round the weight of each layer by `rounding(moments, grid)`, in the order of `grids`.

    The moments are over `images` training images; `models.changed` takes each result before the
    next layer is rounded. For `drift` see `layer_moments`.
    """
    rounded = {}
    for number, (name, grid) in enumerate(grids.items()):
        context.progress(number, len(grids), f"rounding {name}")
        result = rounding(layer_moments(name, models, context, images, drift), grid)
        with torch.no_grad():
            models.changed.get_parameter(f"{name}.weight").copy_(result.weight)
        rounded[name] = on_cpu(result)
    context.progress(len(grids), len(grids), "rounding")
    return rounded
