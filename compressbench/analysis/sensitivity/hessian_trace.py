"""Sensitivity of a layer from the curvature of the loss and the rounding error of its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from compressbench.analysis.probe import asked_of, probe_images, probe_of
from compressbench.core.distributed import rank, sum_over_ranks
from compressbench.core.journal import Journal
from compressbench.core.task import Task
from compressbench.core.types import Context
from compressbench.core.validation import check_integer
from compressbench.tasks.choice import task_of


@dataclass(frozen=True)
class HessianTrace:
    """Mean eigenvalue of a layer's Hessian times half its squared rounding error, nats per image.

    tr(H) / n * ||Q(w) - w||^2 / 2 for the n weights w of the layer (HAWQ-V2, Dong et al. 2020,
    arXiv:1911.03852, equation 8; the factor 1/2 makes it the second-order estimate of the loss).

    The trace is Hutchinson's estimate. The loss is KL(float outputs || outputs), whose Hessian at
    the float weights is that of the cross-entropy averaged over labels drawn from the float
    outputs: positive semidefinite, and no labels are needed. BatchNorm normalizes each batch, as
    for `LossIncrease`. The cost is about five forward passes per vector, whatever the number of
    layers.

    Args:
        images: Number of training images, at least 2.
        vectors: Number of random vectors, divided among the batches; at least 1.
        batch_size: Images per batch, at least 2.
    """

    images: int = 512
    vectors: int = 32
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_integer("images", self.images, 2)
        check_integer("vectors", self.vectors, 1)
        check_integer("batch_size", self.batch_size, 2)

    def __call__(
        self, model: nn.Module, candidates: Mapping[str, Mapping[int, Tensor]], context: Context
    ) -> dict[str, dict[int, float]]:
        traces = self.traces(model, list(candidates), context)
        costs: dict[str, dict[int, float]] = {}
        for layer, weights in candidates.items():
            original = model.get_parameter(f"{layer}.weight").detach()
            curvature = max(traces[layer], 0.0) / original.numel()
            costs[layer] = {
                bits: curvature * float((weight.detach() - original).double().square().sum()) / 2
                for bits, weight in weights.items()
            }
        return costs

    def traces(self, model: nn.Module, layers: Sequence[str], context: Context) -> dict[str, float]:
        """Map each layer to the trace of its block of the Hessian of the loss per image."""
        probe = probe_of(model, context.runtime.device)
        batches = probe_images(context, self.images, self.batch_size)
        parts = {**asked_of(probe, batches), "layers": list(layers), "vectors": self.vectors,
                 "seed": context.seed}  # fmt: skip
        traces: dict[str, float] = context.recall(
            parts,
            lambda journal: self._traces(probe, batches, layers, replace(context, journal=journal)),
        )
        return traces

    def _traces(
        self,
        probe: nn.Module,
        batches: Sequence[Tensor],
        layers: Sequence[str],
        context: Context,
    ) -> dict[str, float]:
        weights = [probe.get_parameter(f"{layer}.weight").requires_grad_() for layer in layers]
        task = task_of(context.data.spec)
        draws = -(-self.vectors // len(batches))
        generator = torch.Generator().manual_seed(context.seed + rank())
        total = torch.zeros(len(layers) + 1, dtype=torch.float64, device=context.runtime.device)
        text = "measuring the curvature of the loss"
        for done, inputs in enumerate(batches):
            context.progress(done, len(batches), text)
            loss, kept = partial(_loss, probe, task, inputs), context.journal.within(str(done))
            total[:-1] += hutchinson(loss, weights, draws, generator, kept)
            total[-1] += len(inputs)
        *sums, images = sum_over_ranks(total).tolist()
        return {layer: value / images for layer, value in zip(layers, sums, strict=True)}


def _loss(probe: nn.Module, task: Task, inputs: Tensor) -> Tensor:
    answers = probe(inputs)
    return task.divergence(answers.detach(), answers)


def hutchinson(
    loss: Callable[[], Tensor],
    weights: Sequence[Tensor],
    vectors: int,
    generator: torch.Generator,
    journal: Journal | None = None,
) -> Tensor:
    """Estimate the traces of the L diagonal blocks of the Hessian of `loss()`, float64 [L].

    Each estimate is the mean of v_l . (H v)_l over `vectors` vectors v of independent random
    signs. E[v v^T] is the identity, so the off-diagonal blocks cancel on average (Hutchinson
    1990). `journal` keeps the estimate of each vector, of this loss and `generator` only.
    """
    gradients = cache(lambda: torch.autograd.grad(loss(), weights, create_graph=True))

    def estimate() -> Tensor:
        signs = [_signs(weight, generator) for weight in weights]
        products = torch.autograd.grad(gradients(), weights, signs, retain_graph=True)
        pairs = zip(signs, products, strict=True)
        return torch.stack([(sign * product).sum(dtype=torch.float64) for sign, product in pairs])

    kept = journal or Journal()
    total = torch.zeros(len(weights), dtype=torch.float64, device=weights[0].device)
    for number in range(vectors):
        total += kept.once(str(number), estimate, generator).to(total)
    return total / vectors


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.randint(2, like.shape, generator=generator)
    return (2 * bits - 1).to(like)
