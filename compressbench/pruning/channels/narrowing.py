"""Slices the tensors of a model, and updates the sizes that its modules hold."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compressbench.pruning.channels.coupling import Coupling
from compressbench.pruning.channels.rules_layers import whole_groups
from compressbench.pruning.channels.rules_reshape import counts_heads


def narrow_(
    model: nn.Module, coupling: Coupling, atoms: Collection[int], with_sizes: bool = False
) -> None:
    """Remove all channels that go with `atoms`.

    Attributes of modules that hold a number of heads follow; with `with_sizes`, so do all that
    hold a size by which the module reshapes or splits. Nothing is verified here.
    """
    gone = torch.tensor(sorted(atoms), dtype=torch.int64)
    for name in coupling.outputs:
        inner, outer = (~torch.isin(m[name], gone) for m in (coupling.inputs, coupling.outputs))
        if not (inner.all() and outer.all()):
            _narrow_layer_(model.get_submodule(name), inner, outer)
    for name, labels in coupling.raws.items():
        _slice_(model, name, labels, gone)
    for name, labels in coupling.counted.items():
        kept = int((~torch.isin(labels, gone)).sum())
        if kept < len(labels):
            _recount_(model.get_submodule(name), kept)
    _set_widths_(model, coupling, gone, with_sizes)


def _narrow_layer_(layer: Any, inner: Tensor, outer: Tensor) -> None:
    """Keep the channels of a layer where `inner` [in channels] and `outer` [out] are true."""
    weight: Tensor = layer.weight.detach()
    rows, columns = outer, inner
    if isinstance(layer, _ConvNd):
        rows, columns = _of_groups(layer, inner, outer)
    axes = (1, 0) if isinstance(layer, _ConvNd) and layer.transposed else (0, 1)
    for axis, kept in zip(axes, (rows, columns), strict=True):
        weight = weight.index_select(axis, kept.nonzero().flatten())
    layer.weight = nn.Parameter(weight.contiguous(), requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        values = layer.bias.detach()[outer]
        layer.bias = nn.Parameter(values, requires_grad=layer.bias.requires_grad)
    if isinstance(layer, _ConvNd):
        if whole_groups(layer):
            layer.groups = int(inner.sum()) * layer.groups // layer.in_channels
        layer.in_channels, layer.out_channels = int(inner.sum()), int(outer.sum())
    else:
        layer.in_features, layer.out_features = int(inner.sum()), int(outer.sum())


def _of_groups(layer: _ConvNd, inner: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """What to keep along the weight's axes of output and input channels."""
    groups = layer.groups
    if groups == 1:
        return outer, inner
    whole = whole_groups(layer)
    per_group = slice(0, layer.in_channels // groups), slice(0, layer.out_channels // groups)
    if layer.transposed:  # weight [in, out / groups, ...]
        columns = inner
        rows = torch.ones_like(outer[per_group[1]]) if whole else outer[per_group[1]]
        return rows, columns
    columns = torch.ones_like(inner[per_group[0]]) if whole else inner[per_group[0]]
    return outer, columns


def _slice_(model: nn.Module, name: str, labels: Tensor, gone: Tensor) -> None:
    """Remove the slices of a parameter or buffer whose labels are all gone."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    old: Tensor = getattr(owner, leaf)
    lost = torch.isin(labels, gone)
    if not lost.any():
        return
    lost = lost.expand(old.shape)
    values = old.detach()
    for axis in range(old.ndim):
        others = [a for a in range(old.ndim) if a != axis]
        empty = lost.all(dim=others) if others else lost
        if empty.any():
            kept = (~empty).nonzero().flatten()
            values, lost = values.index_select(axis, kept), lost.index_select(axis, kept)
    if lost.any():
        raise ValueError(f"{name} cannot be sliced: its channels are spread over its elements")
    if isinstance(old, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(values, requires_grad=old.requires_grad))
    else:
        setattr(owner, leaf, values)


def _recount_(module: Any, channels: int) -> None:
    """Update the channels that a normalization of torch holds."""
    if isinstance(module, nn.GroupNorm):
        module.num_groups = channels * module.num_groups // module.num_channels
        module.num_channels = channels
    elif isinstance(module, nn.PReLU):
        module.num_parameters = channels
    elif hasattr(module, "num_features"):
        module.num_features = channels


def _set_widths_(model: nn.Module, coupling: Coupling, gone: Tensor, with_sizes: bool) -> None:
    """Update attributes of the modules that reshape channels, from the old size to the new."""
    new: dict[tuple[str, str], int] = {}
    for width in coupling.widths:
        before, after = len(width.labels), int((~torch.isin(width.labels, gone)).sum())
        module = model.get_submodule(width.owner)
        for name, value in vars(module).items():
            if (
                type(value) is int
                and value == before > after
                and (with_sizes or counts_heads(name))
            ):
                new[width.owner, name] = after
    for (owner, name), value in new.items():
        setattr(model.get_submodule(owner), name, value)
    for name in coupling.raws:
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, nn.Embedding):
            module.embedding_dim = module.weight.shape[1]
