"""What becomes of the output channels of layers: the calls behind them, and what those return."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compressbench.core.calls import Call, Site, trace, watch
from compressbench.core.distributed import sum_over_ranks
from compressbench.core.errors import UserError
from compressbench.core.types import Context
from compressbench.pruning.criteria.batches import watched_batches

_LAYERS = {
    "conv1d", "conv2d", "conv3d", "linear", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d",
}  # fmt: skip
_KEPT = {"batch_norm", "dropout"}  # on the way to the activation
_ADDED = {"add", "radd"}  # on the way, where an activation follows
_ACTIVATIONS = {
    "relu", "relu6", "hardtanh", "clamp", "clip", "leaky_relu", "elu", "prelu", "gelu", "silu",
    "hardswish", "hardsigmoid", "sigmoid", "tanh", "softplus", "mish",
}  # fmt: skip


def chain(calls: list[Call], position: int) -> list[int]:
    """The calls that the output of a layer goes through, the layer's own first: BatchNorm,
    additions, then an activation, which ends it, as long as nothing else takes it.
    """
    found, additions = [position], list[int]()
    while len(calls[found[-1] if not additions else additions[-1]].consumers) == 1:
        following = calls[found[-1] if not additions else additions[-1]].consumers[0]
        name = calls[following].function
        if name in _ADDED:
            additions.append(following)
        elif name in _ACTIVATIONS:
            return [*found, *additions, following]
        elif name in _KEPT and not additions:
            found.append(following)
        else:
            break
    return found


def layer_calls(
    model: nn.Module, layers: Mapping[str, nn.Module], example: Tensor
) -> tuple[list[Call], dict[str, list[int]]]:
    """All calls of a forward pass, and the positions at which each layer's weight is used.

    UserError for a layer whose weight is never used by a convolution or linear function.
    """
    calls, _ = trace(model, example)
    found = {}
    for name in layers:
        weight = id(model.get_parameter(f"{name}.weight"))
        found[name] = [
            n for n, c in enumerate(calls) if c.function in _LAYERS and weight in c.parameters
        ]
        if not found[name]:
            raise UserError(f"{name} is never called, so its outputs cannot be seen: skip it")
    return calls, found


@torch.no_grad()
def channel_means(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    context: Context,
    images: int,
    batch_size: int,
    value: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Layer -> mean of `value` (elementwise) of each output channel, float64 [out channels], over
    all positions of `images` training images of all ranks.

    The output is taken behind BatchNorm, additions and the activation that follow the layer.
    """
    probe = deepcopy(model).eval().to(context.runtime.device)
    example = context.data.spec.blank(1).to(context.runtime.device)
    sites = _sites(probe, layers, example)
    totals: dict[str, Tensor] = {}

    def take(site: Site, output: Tensor) -> None:
        for name in sites[site]:
            sums = _channel_sums(probe.get_submodule(name), value(output))
            totals[name] = totals[name] + sums if name in totals else sums

    for inputs, _ in watched_batches(context, images, batch_size, "outputs of the layers"):
        watch(probe, inputs, sites, take)
    return {name: _mean(sum_over_ranks(totals[name])).cpu() for name in layers}


def _sites(
    model: nn.Module, layers: Mapping[str, nn.Module], example: Tensor
) -> dict[Site, list[str]]:
    calls, positions = layer_calls(model, layers, example)
    sites: dict[Site, list[str]] = {}
    for name, places in positions.items():
        for end in {chain(calls, place)[-1] for place in places}:
            sites.setdefault((calls[end].function, calls[end].index), []).append(name)
    return sites


def _channel_sums(layer: nn.Module, values: Tensor) -> Tensor:
    """[2, channels]: sums over all other axes, and how many values each is of."""
    axis = 1 if isinstance(layer, _ConvNd) else values.ndim - 1
    sums = values.double().movedim(axis, 0).flatten(1).sum(1)
    return torch.stack([sums, torch.full_like(sums, values.numel() / len(sums))])


def _mean(sums: Tensor) -> Tensor:
    return sums[0] / sums[1]
