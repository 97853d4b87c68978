"""Removes channels from a model, and verifies that nothing else changes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compressbench.core.batchnorm import batchnorm_layers
from compressbench.core.edits import apply_edit_, masked_layers
from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Edit
from compressbench.pruning.channels.attention_heads import set_counts_
from compressbench.pruning.channels.coupling import (
    REFUSALS,
    ChannelGroup,
    Side,
    dependency_graph,
    is_depthwise,
)

TOLERANCE = 1e-3  # relative to the largest output; reordered float32 sums differ far less

Cuts = Mapping[str, Sequence[int]]  # root of a group -> its channels to remove
Removed = dict[str, dict[Side, list[int]]]


def removed_channels(groups: Iterable[ChannelGroup], cuts: Cuts) -> Removed:
    """Map module and side to the channels that the cuts remove, by their original indices."""
    removed: defaultdict[str, dict[Side, list[int]]] = defaultdict(dict)
    for group in groups:
        chosen = cuts.get(group.root, ())
        for (name, side), channels in group.coupled.items():
            gone = {channel for root in chosen for channel in channels.get(root, ())}
            if gone:
                removed[name][side] = sorted(gone | set(removed[name].get(side, ())))
    return dict(removed)


def kept_channels(model: nn.Module, removed: Removed) -> dict[str, Tensor]:
    """Map each BatchNorm layer of `model` that loses channels to those it keeps, int64 [C]."""
    kept = {}
    for name, layer in batchnorm_layers(model).items():
        gone = removed.get(name, {}).get("out", [])
        if gone:
            stays = torch.ones(layer.num_features, dtype=torch.bool)
            stays[gone] = False
            kept[name] = stays.nonzero().flatten()
    return kept


def remove_channels(
    model: nn.Module, groups: Sequence[ChannelGroup], cuts: Cuts, example: Tensor
) -> nn.Module:
    """A copy of `model` without the channels of `cuts`, verified to compute the same otherwise.

    Its outputs on `example` [B, ...] must equal those of `model` when every layer ignores the
    removed channels. Raises CheckFailedError, with the reason, if they do not.
    """
    small = deepcopy(model)
    try:
        with dependency_graph(small, example) as graph:
            for root, channels in cuts.items():
                layer = small.get_submodule(root)
                prune = graph.get_pruner_of_module(layer).prune_out_channels
                graph.get_pruning_group(layer, prune, list(channels)).prune(record_history=False)
        for group in groups:
            if group.root in cuts:
                set_counts_(small, model, group.heads)
        _restore_flags_(small, model)
        _slice_masks_(small)
        outputs = run(small, example)
    except REFUSALS as error:
        reason = str(error).partition("\n")[0]
        raise CheckFailedError(f"the model does not run without its channels: {reason}") from error
    ignoring = ignore_channels(model, removed_channels(groups, cuts))
    expected = run(ignoring, example)
    bound = TOLERANCE * float(expected.abs().max())
    if outputs.shape != expected.shape or not float((outputs - expected).abs().max()) <= bound:
        raise CheckFailedError("its channels are used outside of layers")
    return small


def run(model: nn.Module, example: Tensor) -> Tensor:
    """The model's output in eval mode, with a fixed seed for models that use random numbers."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        output: Tensor = model.eval()(example)
    return output


def ignore_channels(model: nn.Module, removed: Removed) -> nn.Module:
    """A copy of `model` whose layers have zero weights for the removed input channels."""
    copy = deepcopy(model)
    with torch.no_grad():
        for name, weight in ignoring_weights(model, removed).items():
            copy.get_parameter(f"{name}.weight").copy_(weight)
    return copy


def ignoring_weights(model: nn.Module, removed: Removed) -> dict[str, Tensor]:
    """Weights with zeros for the removed input channels, of all layers that have such inputs."""
    weights = {}
    for name, sides in removed.items():
        layer = model.get_submodule(name)
        if "in" in sides and isinstance(layer, (_ConvNd, nn.Linear)) and not is_depthwise(layer):
            weights[name] = layer.weight.detach().clone()
            for channel in sides["in"]:
                _input_weights(layer, weights[name], channel).zero_()
    return weights


def _input_weights(layer: _ConvNd | nn.Linear, weight: Tensor, channel: int) -> Tensor:
    """View of the part of `weight` that is multiplied with one input channel."""
    if isinstance(layer, _ConvNd) and layer.transposed:
        return weight[channel]
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    outputs, inputs = weight.shape[:2]
    rows, group = outputs // groups, channel // inputs
    return weight[group * rows : (group + 1) * rows, channel % inputs]


def _restore_flags_(small: nn.Module, model: nn.Module) -> None:
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    for name, parameter in small.named_parameters():
        parameter.requires_grad_(flags[name])
        parameter.grad = None


def _slice_masks_(model: nn.Module) -> None:
    """Resize masks of an earlier stage to their weights: zeros stay masked."""
    for layer in masked_layers(model).values():
        weight = layer.get_parameter("weight").detach()
        if layer.get_buffer("weight_mask").shape != weight.shape:
            layer.register_buffer("weight_mask", weight != 0)


def resize_edit(before: nn.Module, after: nn.Module, removed: Removed) -> Edit:
    """The edit, in plain JSON, that gives `before` the shapes and attributes of `after`."""
    shapes = _shapes(before)
    tensors = {n: list(s) for n, s in _shapes(after).items() if s != shapes[n]}
    attributes = {}
    old = dict(before.named_modules())
    for name, module in after.named_modules():
        changed = {
            attribute: list(value) if isinstance(value, tuple) else value
            for attribute, value in vars(module).items()
            if _is_size(value) and value != vars(old[name]).get(attribute, value)
        }
        if changed:
            attributes[name] = changed
    return {"kind": "resize", "tensors": tensors, "attributes": attributes, "removed": removed}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {name: tuple(tensor.shape) for name, tensor in tensors}


def _is_size(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(_is_size(item) for item in value)
    return isinstance(value, int) and not isinstance(value, bool)


def check_replay(before: nn.Module, after: nn.Module, edit: Edit, example: Tensor) -> None:
    """Raise CheckFailedError unless `edit` and the tensors of `after` turn `before` into it."""
    replayed = deepcopy(before)
    try:
        apply_edit_(replayed, json.loads(json.dumps(edit)))
        replayed.load_state_dict(after.state_dict())
        same = torch.equal(run(replayed, example), run(after, example))
    except (AttributeError, RuntimeError) as error:
        raise CheckFailedError(f"channel removal cannot be replayed: {error}") from error
    if not same:
        raise CheckFailedError("channel removal, replayed, gives a model with different outputs")
