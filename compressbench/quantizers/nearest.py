"""Round to nearest on a grid that spans the largest weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from compressbench.core import Context
from compressbench.quantizers.grid import Grid, GridWeight, max_scale, round_to_grid


@dataclass(frozen=True)
class Nearest:
    """w -> s * clip(round(w / s), -n, n), n = 2**(bits - 1) - 1, s = max |w| / n.

    The baseline of post-training quantization (Nagel et al. 2021, arXiv:2106.08295, section 2.2).
    """

    def __call__(
        self, model: nn.Module, grids: Mapping[str, Grid], context: Context
    ) -> dict[str, GridWeight]:
        weights = {name: model.get_parameter(f"{name}.weight") for name in grids}
        return {
            name: round_to_grid(weight, max_scale(weight, grids[name]), grids[name])
            for name, weight in weights.items()
        }
