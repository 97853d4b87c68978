"""Rounds every weight to the nearest value of its grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from compressbench.core.grid import Grid, GridWeight, choose_scale, round_to_grid
from compressbench.core.protocols import Observer
from compressbench.core.types import Context


@dataclass(frozen=True)
class Nearest:
    """Replace w by s * clip(round(w / s)), with the scale s from the observer `ranges`.

    The baseline of post-training quantization (Nagel et al. 2021, arXiv:2106.08295, section 2.2).
    """

    ranges: Observer

    def __call__(
        self, model: nn.Module, grids: Mapping[str, Grid], context: Context
    ) -> dict[str, GridWeight]:
        rounded = {}
        for name, grid in grids.items():
            weight = model.get_parameter(f"{name}.weight").detach()
            journal = context.journal.within("nearest", repr([self, grid]), weight)
            choose = partial(choose_scale, weight, grid, self.ranges)
            scale, zero_point = journal.once("scale", choose)
            rounded[name] = round_to_grid(weight, scale.to(weight.device), grid, zero_point)
        return rounded
