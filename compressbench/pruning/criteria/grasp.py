"""Importance of weights: the gradient norm that is lost without them (GraSP)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from compressbench.core.distributed import sum_over_ranks
from compressbench.core.errors import UserError
from compressbench.core.types import Context
from compressbench.core.validation import check_integer, check_positive
from compressbench.pruning.criteria.batches import watched_batches
from compressbench.tasks.choice import task_of

Weights = Sequence[Tensor]


@dataclass(frozen=True)
class Grasp:
    """w (H g): half the decrease of ‖g‖² when w is removed, to first order.

    g and H are gradient and Hessian of the mean cross-entropy over `images` training images, with
    respect to the weights of all pruned layers. Scores are negative where removing w increases
    the gradient; these weights are pruned first.

    Wang et al. 2020 (arXiv:2002.07376, equation 8, with the opposite sign: the paper prunes high
    scores) propose it for models that are not trained yet.

    Args:
        images: Number of training images, with labels and without augmentation.
        batch_size: Only bounds the memory.
        temperature: Divides the logits, as in the authors' code: the gradient of a trained model
            would vanish otherwise. Above 0.
    """

    work: ClassVar[tuple[float, float]] = (4.0, 0.0)  # one gradient and one Hessian product

    images: int = 512
    batch_size: int = 128
    temperature: float = 200.0

    def __post_init__(self) -> None:
        check_integer("images", self.images, 1)
        check_integer("batch_size", self.batch_size, 1)
        check_positive("temperature", self.temperature)

    def of_model(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor]:
        probe = deepcopy(model).eval().to(context.runtime.device).requires_grad_(False)
        weights = [probe.get_parameter(f"{name}.weight").requires_grad_() for name in layers]
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels have no second derivative
            gradient = self._mean(probe, weights, context, "gradients", _gradient)
            product = self._mean(
                probe, weights, context, "gradient flow", partial(_product, gradient)
            )
        return {
            name: (weight.detach().double() * values).float()
            for name, weight, values in zip(layers, weights, product, strict=True)
        }

    def _mean(
        self,
        probe: nn.Module,
        weights: Weights,
        context: Context,
        text: str,
        part: Callable[..., Weights],
    ) -> list[Tensor]:
        """Mean over all images of `part(loss, weights)`, which must be linear in the loss."""
        totals = [torch.zeros_like(weight, dtype=torch.float64) for weight in weights]
        images = totals[0].new_zeros(())
        task = task_of(context.data.spec)
        if not task.learns:
            raise UserError("criterion: gradients of the loss need labels; the data have none")
        sums = {"images": images} | {str(n): total for n, total in enumerate(totals)}
        batches = watched_batches(context, self.images, self.batch_size, text, sums)
        for inputs, targets in batches:
            images += len(targets)
            with torch.enable_grad():
                answers = probe(inputs) / (self.temperature if task.distribution else 1.0)
                loss = task.loss(answers, targets, reduction="sum")
                for total, values in zip(totals, part(loss, weights), strict=True):
                    total += values.detach()
        everyone = sum_over_ranks(images)
        return [sum_over_ranks(total) / everyone for total in totals]


def _gradient(loss: Tensor, weights: Weights) -> Weights:
    return torch.autograd.grad(loss, weights, materialize_grads=True)


def _product(vector: Weights, loss: Tensor, weights: Weights) -> Weights:
    """The Hessian of `loss` times `vector`."""
    gradients = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    along = [v.to(g) for v, g in zip(vector, gradients, strict=True)]
    return torch.autograd.grad(gradients, weights, along, materialize_grads=True)
