"""Sensitivity of a layer: the measured increase of the loss when only this layer is rounded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from compressbench.analysis.probe import probe_images, probe_of
from compressbench.analysis.weight_trials import Trial, costs
from compressbench.core.types import Context
from compressbench.core.validation import check_integer


@dataclass(frozen=True)
class LossIncrease:
    """Mean KL(float outputs || outputs with one layer rounded), in nats per image.

    Measured on `images` training images in batches of `batch_size` (both at least 2); BatchNorm
    normalizes each batch (`probe_of`). The cost is one forward pass over the images for each
    layer and bit width. Measuring one layer at a time follows Dong et al. 2019
    (arXiv:1905.03696, section 3); the divergence as the loss follows Cai et al. 2020
    (arXiv:2001.00281).
    """

    images: int = 512
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_integer("images", self.images, 2)
        check_integer("batch_size", self.batch_size, 2)

    def __call__(
        self, model: nn.Module, candidates: Mapping[str, Mapping[int, Tensor]], context: Context
    ) -> dict[str, dict[int, float]]:
        probe = probe_of(model, context.runtime.device)
        batches = probe_images(context, self.images, self.batch_size)
        keys = [(layer, bits) for layer, weights in candidates.items() for bits in weights]
        trials: list[Trial] = [
            partial(dict, [(layer, candidates[layer][bits])]) for layer, bits in keys
        ]
        table: dict[str, dict[int, float]] = {layer: {} for layer in candidates}
        for (layer, bits), cost in zip(keys, costs(probe, batches, trials, context), strict=True):
            table[layer][bits] = cost
        return table
