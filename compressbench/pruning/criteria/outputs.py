"""Follows the outputs of layers to their activation, and averages them per channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compressbench.core.call_stack import Site
from compressbench.core.calls import Call, trace, watch
from compressbench.core.distributed import sum_over_ranks
from compressbench.core.errors import UserError
from compressbench.core.types import Context
from compressbench.pruning.criteria.batches import watched_batches

_LAYERS = {
    "conv1d", "conv2d", "conv3d", "linear", "conv_transpose1d", "conv_transpose2d",
    "conv_transpose3d",
}  # fmt: skip
_KEPT = {"batch_norm", "dropout"}  # may come between a layer and its activation
_ADDED = {"add", "radd"}  # likewise, if an activation follows
_ACTIVATIONS = {
    "relu", "relu6", "hardtanh", "clamp", "clip", "leaky_relu", "elu", "prelu", "gelu", "silu",
    "hardswish", "hardsigmoid", "sigmoid", "tanh", "softplus", "mish",
}  # fmt: skip


def chain(calls: list[Call], position: int) -> list[int]:
    """Positions of the calls from a layer to its activation, the layer's own call first.

    BatchNorm and additions in between are included, as long as each output has one consumer; the
    activation is the last. `calls` come from `layer_calls`, `position` is that of the layer.
    """
    path, additions = [position], list[int]()
    while len(calls[path[-1] if not additions else additions[-1]].consumers) == 1:
        following = calls[path[-1] if not additions else additions[-1]].consumers[0]
        name = calls[following].function
        if name in _ADDED:
            additions.append(following)
        elif name in _ACTIVATIONS:
            return [*path, *additions, following]
        elif name in _KEPT and not additions:
            path.append(following)
        else:
            break
    return path


def layer_calls(
    model: nn.Module, layers: Mapping[str, nn.Module], example: Tensor
) -> tuple[list[Call], dict[str, list[int]]]:
    """Trace a forward pass: all calls, and the positions of those that use each layer's weight.

    Raises UserError for a layer whose weight is never used by a convolution or linear function.
    """
    calls, _ = trace(model, example)
    positions = {}
    for name in layers:
        weight = id(model.get_parameter(f"{name}.weight"))
        positions[name] = [
            n for n, c in enumerate(calls) if c.function in _LAYERS and weight in c.parameters
        ]
        if not positions[name]:
            raise UserError(f"{name} is never called, so its outputs cannot be observed: skip it")
    return calls, positions


@torch.no_grad()
def channel_means(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    context: Context,
    images: int,
    batch_size: int,
    value: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """Map each layer to the mean of `value(output)` per output channel, float64 [out channels].

    `value` is elementwise; the mean is over all positions of `images` training images of all
    ranks. Outputs are taken after the BatchNorm, additions and activation that follow the layer.
    """
    probe = deepcopy(model).eval().to(context.runtime.device)
    example = context.data.spec.blank(1).to(context.runtime.device)
    sites = _sites(probe, layers, example)
    totals: dict[str, Tensor] = {}

    def take(site: Site, output: Tensor) -> None:
        for name in sites[site]:
            sums = _channel_sums(probe.get_submodule(name), value(output))
            totals[name] = totals[name] + sums if name in totals else sums

    for inputs, _ in watched_batches(context, images, batch_size, "outputs of the layers", totals):
        watch(probe, inputs, sites, take)
    return {name: _mean(sum_over_ranks(totals[name])).cpu() for name in layers}


def _sites(
    model: nn.Module, layers: Mapping[str, nn.Module], example: Tensor
) -> dict[Site, list[str]]:
    calls, positions = layer_calls(model, layers, example)
    sites: dict[Site, list[str]] = {}
    for name, places in positions.items():
        for end in {chain(calls, place)[-1] for place in places}:
            sites.setdefault(calls[end].site, []).append(name)
    return sites


def _channel_sums(layer: nn.Module, values: Tensor) -> Tensor:
    """[2, channels]: the sum over all other axes, and the number of values in it."""
    axis = 1 if isinstance(layer, _ConvNd) else values.ndim - 1
    sums = values.double().movedim(axis, 0).flatten(1).sum(1)
    return torch.stack([sums, torch.full_like(sums, values.numel() / len(sums))])


def _mean(sums: Tensor) -> Tensor:
    return sums[0] / sums[1]
