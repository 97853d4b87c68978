"""Rounds layers in order, each on inputs from the layers already rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from compressbench.analysis.input_moments import Moments
from compressbench.analysis.layer_inputs import layer_moments
from compressbench.core.grid import Grid, GridWeight, on_cpu
from compressbench.core.types import Context


def rounded_in_order(
    models: tuple[nn.Module, nn.Module],
    grids: Mapping[str, Grid],
    rounding: Callable[[Moments, Grid], GridWeight],
    context: Context,
    images: int,
) -> dict[str, GridWeight]:
    """Round the weight of each layer by `rounding(moments, grid)`, in the order of `grids`.

    The moments are over `images` training images; `models` come from `working_copies`, and the
    second takes each result before the next layer is rounded.
    """
    rounded = {}
    for number, (name, grid) in enumerate(grids.items()):
        context.progress(number, len(grids), f"rounding {name}")
        result = rounding(layer_moments(name, models, context, images), grid)
        with torch.no_grad():
            models[1].get_parameter(f"{name}.weight").copy_(result.weight)
        rounded[name] = on_cpu(result)
    context.progress(len(grids), len(grids), "rounding")
    return rounded
