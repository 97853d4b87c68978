"""SparseGPT: importance by what the outputs lose at best, and weights that make up for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from compressbench.analysis.input_moments import Moments
from compressbench.analysis.layer_inputs import layer_moments, working_copies
from compressbench.analysis.obs import compensated, damped, inverse_factor
from compressbench.core.errors import UserError
from compressbench.core.layers import per_output
from compressbench.core.types import Context
from compressbench.core.validation import check_flag, check_integer, check_positive


@dataclass(frozen=True)
class SparseGpt:
    """w² / U_jj², with U^T U = H^-1 and H = sum of x x^T + d I over the inputs of a layer: the
    squared error of the layer's outputs once the weights of later inputs have made up for w.

    d is `damping` times the mean of the diagonal; x come from `images` training images, in a
    convolution unfolded patches. `update` then goes through the layers in order and removes the
    chosen weights input by input, the ones that follow moving by -e U_jk / U_jj; the targets are
    the outputs of the unpruned model, and x those behind the layers pruned already (with `drift`;
    without, the targets are those of the unpruned layer on the same x). An output that ends worse
    than without the moves is left without. The masks are chosen for all inputs of a layer at once,
    from unchanged weights, by the scope of the stage; the paper chooses them for 128 inputs at a
    time, half of the weights of each layer. Memory: 16 K^2 bytes for K weights of an output.

    Frantar and Alistarh 2023 (arXiv:2301.00774).
    """

    comparable: ClassVar[bool] = False  # between layers: outputs have other scales
    work: ClassVar[tuple[float, float]] = (0.0, 100.0)  # roughly: each layer on its own, twice

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
        models = working_copies(model, context.runtime.device)[:1] * 2
        scores = {}
        for number, (name, layer) in enumerate(layers.items()):
            context.progress(number, len(layers), f"inputs of {name}")
            moments = layer_moments(name, models, context, self.images)
            factor = inverse_factor(damped(moments.second.double(), self.damping))
            diagonal = factor.diagonal(dim1=1, dim2=2)[:, None]
            score = (moments.rows(moments.weight).double() / diagonal).square()
            scores[name] = score.reshape(layer.get_parameter("weight").shape).float().cpu()
        return scores

    @torch.no_grad()
    def update(
        self, model: nn.Module, masks: Mapping[str, Tensor], context: Context
    ) -> dict[str, Tensor]:
        """New weights of the layers of `masks` (True is kept), zero where the masks say so."""
        reference, pruned = working_copies(model, context.runtime.device)
        models = (reference if self.drift else pruned, pruned)
        found = {}
        for number, (name, mask) in enumerate(masks.items()):
            context.progress(number, len(masks), f"updating {name}")
            moments = layer_moments(name, models, context, self.images)
            weight = self.repair(moments, mask.to(moments.weight.device))
            pruned.get_parameter(f"{name}.weight").copy_(weight)
            found[name] = weight.cpu()
        context.progress(len(masks), len(masks), "updating weights")
        return found

    def repair(self, moments: Moments, mask: Tensor) -> Tensor:
        """The weight under `mask` (of its shape) whose outputs are near the targets."""
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
            raise UserError(f"sparsegpt knows no {type(layer).__name__}: skip {name}")
