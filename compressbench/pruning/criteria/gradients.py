"""Gradients of the loss in the weights of single layers, batch by batch of training images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.distributed import sum_over_ranks
from compressbench.core.types import Context
from compressbench.pruning.criteria.batches import watched_batches

# (a weight, its gradient, the images of the batch) -> what is summed up over the batches
Part = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Sums:
    """Over the batches of all ranks, float64 on the runtime's device: `parts` by layer, in the
    shape of its weight, and how many `batches` and `images` there were, each [].
    """

    parts: dict[str, Tensor]
    weights: dict[str, Tensor]
    batches: Tensor
    images: Tensor


def gradient_sums(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    context: Context,
    images: int,
    batch_size: int,
    part: Part,
) -> Sums:
    """The sums of `part` over the `batch_gradients`, weights and gradients in float64."""
    device = context.runtime.device
    weights = {
        name: layer.get_parameter("weight").detach().double().to(device)
        for name, layer in layers.items()
    }
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    counts = torch.zeros(2, dtype=torch.float64, device=device)
    for gradients, count in batch_gradients(model, layers, context, images, batch_size):
        counts += torch.tensor([1.0, count], dtype=torch.float64, device=device)
        for name, gradient in zip(layers, gradients, strict=True):
            totals[name] += part(weights[name], gradient.double(), count)
    batches, seen = sum_over_ranks(counts)
    parts = {name: sum_over_ranks(total) for name, total in totals.items()}
    return Sums(parts, weights, batches, seen)


def batch_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    context: Context,
    images: int,
    batch_size: int,
) -> Iterator[tuple[list[Tensor], int]]:
    """(gradients of the mean cross-entropy, one a layer, in its weight's shape; images) of each
    batch of this rank. The model is in eval mode: BatchNorm keeps its statistics.
    """
    probe = deepcopy(model).eval().to(context.runtime.device).requires_grad_(False)
    weights = [probe.get_parameter(f"{name}.weight").requires_grad_() for name in layers]
    for inputs, targets in watched_batches(context, images, batch_size, "gradients of the weights"):
        with torch.enable_grad():
            loss = F.cross_entropy(probe(inputs), targets)
            gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
        yield list(gradients), len(inputs)
