"""Sensitivity of a layer: the loss that rounding it alone costs, measured."""

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
    """Mean KL(float answers || answers with one layer rounded), nats per image, on `images`
    training images in batches of `batch_size`, each of which normalizes itself (`probe_of`).

    It takes a forward pass for each layer and width. Sensitivity by one layer at a time is that
    of Dong et al. 2019 (arXiv:1905.03696, section 3); the divergence as the loss that of Cai et
    al. 2020 (arXiv:2001.00281).
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
        found: dict[str, dict[int, float]] = {layer: {} for layer in candidates}
        for (layer, bits), cost in zip(keys, costs(probe, batches, trials, context), strict=True):
            found[layer][bits] = cost
        return found
