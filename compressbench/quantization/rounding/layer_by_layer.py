"""Rounding one layer after the other, each on what the layers before it have become."""

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
    """Layer -> its weight by `rounding`, from the moments of its inputs in both `models` over
    `images` training images. The second model takes each result before the next layer is seen.
    """
    found = {}
    for number, (name, grid) in enumerate(grids.items()):
        context.progress(number, len(grids), f"rounding {name}")
        result = rounding(layer_moments(name, models, context, images), grid)
        with torch.no_grad():
            models[1].get_parameter(f"{name}.weight").copy_(result.weight)
        found[name] = on_cpu(result)
    context.progress(len(grids), len(grids), "rounding")
    return found
