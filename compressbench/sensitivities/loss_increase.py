"""Sensitivity of a layer: the loss that rounding it alone costs, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressbench.checks import check_integer
from compressbench.collectives import sum_over_ranks
from compressbench.core import Context
from compressbench.sensitivities.probe import divergence, probe_images, probe_of, weight_replaced


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
        costs: dict[str, dict[int, float]] = {}
        with torch.no_grad():
            answers = [probe(inputs).log_softmax(1) for inputs in batches]
            for done, (layer, weights) in enumerate(candidates.items()):
                context.progress(done, len(candidates), f"sensitivity of {layer}")
                costs[layer] = {}
                for bits, weight in weights.items():
                    with weight_replaced(probe, layer, weight):
                        costs[layer][bits] = _mean_divergence(probe, batches, answers)
        return costs


def _mean_divergence(probe: nn.Module, batches: list[Tensor], answers: list[Tensor]) -> float:
    """KL per image over the images of all ranks; rounding errors below zero count as zero."""
    total = torch.zeros(2, dtype=torch.float64, device=batches[0].device)
    for inputs, answer in zip(batches, answers, strict=True):
        total[0] += divergence(answer.double(), probe(inputs).double())
        total[1] += len(inputs)
    nats, images = sum_over_ranks(total).tolist()
    return float(max(nats, 0.0) / images)
