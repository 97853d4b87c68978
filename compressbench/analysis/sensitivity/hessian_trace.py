"""Sensitivity of a layer: the curvature of the loss in its weights, times their rounding error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressbench.analysis.probe import asked_of, divergence, probe_images, probe_of
from compressbench.core.distributed import rank, sum_over_ranks
from compressbench.core.types import Context
from compressbench.core.validation import check_integer


@dataclass(frozen=True)
class HessianTrace:
    """tr(H) / n * ||Q(w) - w||^2 / 2 for the n weights w of a layer, nats per image: the mean
    eigenvalue of the Hessian times the squared rounding error (HAWQ-V2, Dong et al. 2020,
    arXiv:1911.03852, equation 8; the half makes it the second-order estimate of the loss).

    The trace is Hutchinson's estimate over `vectors` random vectors, shared out to the batches of
    `batch_size` of `images` training images. The loss is KL(float answers || answers), whose
    Hessian at the float weights is that of the cross-entropy on average over labels drawn from
    the float answers: never negative, and it takes no labels. Batches normalize themselves, as
    for `LossIncrease`. It takes about five forward passes for each vector and batch, whatever the
    number of layers.
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
            own = model.get_parameter(f"{layer}.weight").detach()
            curvature = max(traces[layer], 0.0) / own.numel()
            costs[layer] = {
                bits: curvature * float((weight.detach() - own).double().square().sum()) / 2
                for bits, weight in weights.items()
            }
        return costs

    def traces(self, model: nn.Module, layers: Sequence[str], context: Context) -> dict[str, float]:
        """Layer -> trace of its block of the Hessian of the loss per image."""
        probe = probe_of(model, context.runtime.device)
        batches = probe_images(context, self.images, self.batch_size)
        asked = {**asked_of(probe, batches), "layers": list(layers), "vectors": self.vectors,
                 "seed": context.seed}  # fmt: skip
        found: dict[str, float] = context.recall(
            asked, lambda: self._traces(probe, batches, layers, context)
        )
        return found

    def _traces(
        self,
        probe: nn.Module,
        batches: Sequence[Tensor],
        layers: Sequence[str],
        context: Context,
    ) -> dict[str, float]:
        weights = [probe.get_parameter(f"{layer}.weight").requires_grad_() for layer in layers]
        draws = -(-self.vectors // len(batches))
        generator = torch.Generator().manual_seed(context.seed + rank())
        total = torch.zeros(len(layers) + 1, dtype=torch.float64, device=context.runtime.device)
        for done, inputs in enumerate(batches):
            context.progress(done, len(batches), "curvature of the loss")
            logits = probe(inputs)
            loss = divergence(logits.detach().log_softmax(1), logits)
            total[:-1] += hutchinson(loss, weights, draws, generator)
            total[-1] += len(inputs)
        *sums, images = sum_over_ranks(total).tolist()
        return {layer: value / images for layer, value in zip(layers, sums, strict=True)}


def hutchinson(
    loss: Tensor, weights: Sequence[Tensor], vectors: int, generator: torch.Generator
) -> Tensor:
    """Estimates of the traces of the diagonal blocks of the Hessian of `loss`, float64 [L].

    The mean over `vectors` of v_l . (H v)_l with v of independent signs: E[v v^T] = 1, so that
    other blocks cancel on average (Hutchinson 1990).
    """
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    total = torch.zeros(len(weights), dtype=torch.float64, device=loss.device)
    for _ in range(vectors):
        signs = [_signs(weight, generator) for weight in weights]
        products = torch.autograd.grad(gradients, weights, signs, retain_graph=True)
        for position, (sign, product) in enumerate(zip(signs, products, strict=True)):
            total[position] += (sign * product).sum(dtype=torch.float64)
    return total / vectors


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.randint(2, like.shape, generator=generator)
    return (2 * bits - 1).to(like)
