"""SparseGPT: scores weights by the output error, and updates the remaining weights to reduce it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressbench.analysis.input_moments import Moments
from compressbench.analysis.layer_inputs import WorkingCopies, layer_moments
from compressbench.analysis.obs import compensated, damped, inverse_factor
from compressbench.core.digests import named
from compressbench.core.errors import UserError
from compressbench.core.layers import per_output
from compressbench.core.types import Context
from compressbench.core.validation import check_flag, check_integer, check_positive


@dataclass(frozen=True)
class SparseGpt:
    """w² / U_jj²: the squared error of a layer's outputs after later weights compensate for w.

    U^T U = H^-1, and H = sum of x x^T + d I over the inputs x of a layer (unfolded patches in a
    convolution), where d is `damping` times the mean of the diagonal.

    After the masks are chosen, `update` visits the layers in order and removes the
    masked weights input by input, moving the weights of later inputs by -e U_jk / U_jj. An output
    that ends up with a larger error than without these moves keeps its remaining weights unchanged.

    Masks are chosen for all inputs of a layer at once, from unchanged weights, by the scope of
    the stage; the paper chooses them for 128 inputs at a time, half of the weights of each layer.
    Needs 16 K^2 bytes for outputs of K weights. Frantar and Alistarh 2023 (arXiv:2301.00774).

    Args:
        images: Number of training images, at least 2.
        damping: Above 0; raise it if the Hessian of a layer is not positive definite.
        drift: Fit the outputs of the unpruned model, given inputs from the layers pruned so far;
            otherwise those of the unpruned layer on these inputs.
    """

    comparable: ClassVar[bool] = False  # outputs of different layers differ in scale
    work: ClassVar[tuple[float, float]] = (0.0, 100.0)  # estimate: two passes for each layer

    images: int = 256
    damping: float = 0.01
    drift: bool = True

    def __post_init__(self) -> None:
        check_integer("images", self.images, 2)
        check_positive("damping", self.damping)
        check_flag("drift", self.drift)

    @torch.no_grad()
    def of_model(
        self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context
    ) -> dict[str, Tensor]:
        _check_kinds(layers)
        reference = WorkingCopies.of(model, context).reference
        models = WorkingCopies(reference, reference)
        before = context.journal.before(len(layers))

        def score_of(name: str) -> Tensor:
            inner = replace(context, journal=context.journal.within(name))
            moments = layer_moments(name, models, inner, self.images, drift=False)
            factor = inverse_factor(damped(moments.second.double(), self.damping))
            diagonal = factor.diagonal(dim1=1, dim2=2)[:, None]
            score = (moments.rows(moments.weight).double() / diagonal).square()
            return score.reshape(layers[name].get_parameter("weight").shape).float().cpu()

        scores = {}
        for number, name in enumerate(layers):
            context.progress(number, len(layers), f"inputs of {name}{before}")
            scores[name] = context.journal.once(name, partial(score_of, name))
        return scores

    @torch.no_grad()
    def update(
        self, model: nn.Module, masks: Mapping[str, Tensor], context: Context
    ) -> dict[str, Tensor]:
        """New weights of the layers in `masks`, zero where the mask is False."""
        models = WorkingCopies.of(model, context)
        asked = [repr([self, context.batchnorm]), *named(model.state_dict()), *named(masks)]
        journal = context.journal.within("update", *asked)
        before = journal.before(len(masks))

        def repaired(name: str, mask: Tensor) -> Tensor:
            inner = replace(context, journal=journal.within(name))
            moments = layer_moments(name, models, inner, self.images, self.drift)
            return self.repair(moments, mask.to(moments.weight.device)).cpu()

        updated = {}
        for number, (name, mask) in enumerate(masks.items()):
            context.progress(number, len(masks), f"updating {name}{before}")
            updated[name] = journal.once(name, partial(repaired, name, mask))
            models.changed.get_parameter(f"{name}.weight").copy_(updated[name])
        context.progress(len(masks), len(masks), "updating weights")
        return updated

    def repair(self, moments: Moments, mask: Tensor) -> Tensor:
        """The weight, zero where `mask` is False, that best reproduces the target outputs."""
        kept = moments.rows(mask)
        hessian = damped(moments.second.double(), self.damping)
        target = moments.rows(moments.weight).double()
        target = target + torch.linalg.solve(hessian, moments.shift.double().mT).mT

        def update_column(values: Tensor, column: int) -> Tensor:
            return values * kept[..., column]

        moved = compensated(target, hessian, update_column).reshape(mask.shape).float()
        plain = moments.weight * mask
        better = moments.error(moved) < moments.error(plain)
        return torch.where(per_output(better, mask), moved, plain)


def _check_kinds(layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        if not isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            raise UserError(f"sparsegpt does not support {type(layer).__name__}: skip {name}")
