"""Computes gradients of the loss with respect to the weights, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressbench.core.distributed import sum_over_ranks
from compressbench.core.errors import UserError
from compressbench.core.types import Context
from compressbench.pruning.criteria.batches import watched_batches
from compressbench.tasks.choice import task_of

# (weight, its gradient, number of images in the batch) -> the term to sum over batches
Part = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Sums:
    """Sums over the batches of all ranks, float64 on the runtime's device.

    `parts` maps each layer to a tensor of its weight's shape and `weights` to the weight itself;
    `batches` and `images` are the numbers of both, scalar tensors.
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
    """Sum `part` over `batch_gradients`, with weights and gradients in float64."""
    device = context.runtime.device
    weights = {
        name: layer.get_parameter("weight").detach().double().to(device)
        for name, layer in layers.items()
    }
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    counts = torch.zeros(2, dtype=torch.float64, device=device)
    sums = {"counts": counts} | {f"of {name}": total for name, total in totals.items()}
    for gradients, count in batch_gradients(model, layers, context, images, batch_size, sums):
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
    sums: dict[str, Tensor],
) -> Iterator[tuple[list[Tensor], int]]:
    """Yield, for each batch of this rank, the gradients and the number of images.

    The gradients are those of the batch's mean loss, one per layer, in the shape of its weight. The
    model runs in eval mode, so BatchNorm uses its running statistics. `sums` are what the caller
    changes, in place, for `watched_batches`.
    """
    task = task_of(context.data.spec)
    if not task.learns:
        raise UserError("criterion: gradients of the loss need labels; the data have none")
    probe = deepcopy(model).eval().to(context.runtime.device).requires_grad_(False)
    weights = [probe.get_parameter(f"{name}.weight").requires_grad_() for name in layers]
    text = "gradients of the weights"
    for inputs, targets in watched_batches(context, images, batch_size, text, sums):
        with torch.enable_grad():
            loss = task.loss(probe(inputs), targets)
            gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
        yield list(gradients), len(inputs)
