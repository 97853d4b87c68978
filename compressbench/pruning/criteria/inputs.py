"""Computes norms of the inputs that each weight is multiplied with, over training images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compressbench.analysis.input_moments import chunks
from compressbench.core.calls import tensors_in
from compressbench.core.distributed import sum_over_ranks
from compressbench.core.errors import UserError
from compressbench.core.layers import is_transposed, per_output
from compressbench.core.types import Context
from compressbench.pruning.criteria.batches import watched_batches


@torch.no_grad()
def input_squares(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    context: Context,
    images: int,
    batch_size: int,
) -> dict[str, Tensor]:
    """Map each layer to the sum of x², x being the inputs that a weight is multiplied with.

    The sum, float64, is over all positions of `images` training images of all ranks; its shape
    broadcasts to the weight's. Raises UserError for a layer that is never called.
    """
    probe = deepcopy(model).eval().to(context.runtime.device)
    totals: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(_adder(name, totals), with_kwargs=True)
        for name in layers
        for module in _with_weight(probe, probe.get_parameter(f"{name}.weight"))
    ]
    try:
        text = "inputs of the layers"
        for inputs, _ in watched_batches(context, images, batch_size, text, totals):
            probe(inputs)
    finally:
        for handle in handles:
            handle.remove()
    unseen = next((name for name in layers if name not in totals), None)
    if unseen is not None:
        raise UserError(f"{unseen} is never called, so its inputs cannot be observed: skip it")
    return {name: sum_over_ranks(totals[name]).cpu() for name in layers}


def _with_weight(model: nn.Module, weight: Tensor) -> list[nn.Module]:
    return [m for m in model.modules() if getattr(m, "weight", None) is weight]


def _adder(name: str, totals: dict[str, Tensor]) -> Callable[..., None]:
    def add(layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        squares = squares_of(layer, tensors_in([*args, *kwargs.values()])[0])
        totals[name] = totals[name] + squares if name in totals else squares

    return add


def squares_of(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Sums of x² over the positions of one batch, float64.

    In a convolution, x are unfolded patches: padding counts as zeros, and strides omit positions.
    In a transposed convolution, each weight is multiplied with every pixel of its input channel.
    """
    weight = layer.get_parameter("weight")
    if isinstance(layer, _ConvNd) and is_transposed(layer):
        sums = inputs.double().square().sum((0, *range(2, inputs.ndim)))
        return per_output(sums, weight)  # first axis of this weight: input channels
    together = inputs.double().square().sum(0, keepdim=True)  # unfolding only moves values
    total = sum(chunk.sum(1) for chunk in chunks(layer, together))
    assert isinstance(total, Tensor)
    groups, outputs = len(total), len(weight)
    each = total[:, None].expand(groups, outputs // groups, -1)
    return each.reshape(outputs, *weight.shape[1:])
