"""Finds channels that can only be removed together, using Torch-Pruning's dependency graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compressbench.core.errors import CheckFailedError
from compressbench.core.layers import prunable_layers, tied_modules
from compressbench.pruning.channels.attention_heads import head_widths

Side = Literal["out", "in"]
REFUSALS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
Channels = Mapping[int, list[int]]  # channel of the root layer -> channels of a coupled layer


@dataclass(frozen=True)
class ChannelGroup:
    """All channels coupled with the output channels of the layer `root`.

    Channels are coupled across residual additions, BatchNorm, depthwise convolutions and
    concatenations (Fang et al. 2023, arXiv:2301.12900). `coupled` maps (module name, side) to the
    channels that must be removed with each channel of `root`; `reason` says why none of them can
    be removed, or is empty. `heads` maps each layer whose outputs are split into attention heads
    to the width of a head; the channels of a head are removed together.
    """

    root: str
    coupled: Mapping[tuple[str, Side], Channels]
    reason: str = ""
    heads: Mapping[str, int] = field(default_factory=dict)

    def layers(self) -> list[str]:
        """The modules whose output channels would be removed."""
        return [name for name, side in self.coupled if side == "out"]


@contextmanager
def dependency_graph(model: nn.Module, example: Tensor) -> Iterator[Any]:
    """Trace a model for Torch-Pruning, with gradients enabled; keeps the random state.

    The model must be a copy: it is put into eval mode, and all its parameters require gradients.
    """
    from torch_pruning import DependencyGraph

    model.eval().requires_grad_(True)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        yield DependencyGraph().build_dependency(
            model,
            example_inputs=example,
            forward_fn=lambda network, inputs: network(inputs),
            unwrapped_parameters=[],
            customized_pruners={},
            ignored_layers=[],
            ignored_params=[],
            verbose=False,
        )


def channel_groups(model: nn.Module, example: Tensor) -> list[ChannelGroup]:
    """The channel groups of a model; the outputs of each layer are in one group.

    The model must be a copy (see `dependency_graph`). Raises CheckFailedError if Torch-Pruning
    cannot trace it; it follows autograd from a single output tensor.
    """
    names = {module: name for name, module in model.named_modules()}
    tied = tied_modules(model)
    try:
        with dependency_graph(model, example) as graph:
            groups = [
                _channel_group(graph, group, names, tied) for group in graph.get_all_groups([])
            ]
        widths = head_widths(model, example)
    except REFUSALS as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckFailedError(f"cannot trace the channels of this model: {reason}") from error
    return [
        replace(group, heads={n: widths[n] for n in group.layers() if n in widths})
        for group in groups
    ]


def _channel_group(
    graph: Any, group: Any, names: Mapping[Any, str], tied: set[str]
) -> ChannelGroup:
    coupled: defaultdict[tuple[str, Side], defaultdict[int, list[int]]]
    coupled = defaultdict(lambda: defaultdict(list))
    reasons = []
    for item in group:
        node, handler = item.dep.target, item.dep.handler
        is_out = graph.is_out_channel_pruning_fn(handler)
        reasons.append(_obstacle(node, is_out))
        name = names.get(node.module)
        if name is not None:
            if name in tied:
                reasons.append(f"the weight of {name} is tied to another layer's")
            for channel, root in zip(item.idxs, item.root_idxs, strict=True):
                coupled[name, "out" if is_out else "in"][root].append(channel)
    reason = next(filter(None, reasons), "")
    root = names[group[0].dep.target.module]
    return ChannelGroup(root, {key: dict(channels) for key, channels in coupled.items()}, reason)


def _obstacle(node: Any, is_out: bool) -> str:
    """Why channels that reach `node` cannot be removed, or ""."""
    from torch_pruning.ops import OPTYPE

    if node.type == OPTYPE.OUTPUT or (is_out and not node.outputs):
        return "its channels are the model's outputs"
    if node.type in (OPTYPE.LN, OPTYPE.GN):
        return f"{type(node.module).__name__} normalizes over its channels"
    if node.type in (OPTYPE.SPLIT, OPTYPE.UNBIND):
        return "its channels are split"
    if node.type == OPTYPE.SLICE and node.module.dim == 1:
        return "its channels are sliced"
    if node.type in (OPTYPE.MHA, OPTYPE.LSTM, OPTYPE.EMBED):
        return f"coupled with {type(node.module).__name__}"
    module = node.module
    if isinstance(module, _ConvNd) and module.transposed and module.groups > 1:
        return "coupled with a grouped transposed convolution"
    return ""


@dataclass(frozen=True)
class GroupPart:
    """Channels of one group that are outputs of the same layers, and therefore ranked together.

    An atom is a set of channels of the group's root that can only be removed together: a single
    channel, or several for grouped convolutions and attention heads. It corresponds to `size`
    output channels in each of `layers`.
    """

    group: ChannelGroup
    layers: tuple[str, ...]
    atoms: tuple[tuple[int, ...], ...]
    size: int

    @property
    def width(self) -> int:
        """The number of channels in each layer."""
        return len(self.atoms) * self.size


def group_parts(group: ChannelGroup, model: nn.Module) -> tuple[list[GroupPart], str]:
    """Split a group by the layers that compute its channels; else no parts, and the reason."""
    prunable = prunable_layers(model)
    outs = {
        name: channels
        for (name, side), channels in group.coupled.items()
        if side == "out" and name in prunable
    }
    by_layers: defaultdict[tuple[str, ...], list[tuple[int, ...]]] = defaultdict(list)
    for atom in _atoms(group, model):
        sources = tuple(name for name, channels in outs.items() if atom[0] in channels)
        sizes = {sum(len(outs[n].get(r, [])) for r in atom) for n in sources}
        if sizes != {len(atom)}:
            return [], "a grouped convolution combines its channels with others"
        by_layers[sources].append(atom)
    parts = []
    for layers, atoms in by_layers.items():
        if len({len(atom) for atom in atoms}) > 1:
            return [], "grouped convolutions of different group sizes read its channels"
        parts.append(GroupPart(group, layers, tuple(atoms), len(atoms[0])))
    return parts, ""


def _atoms(group: ChannelGroup, model: nn.Module) -> list[tuple[int, ...]]:
    """The sets of root channels that must be removed together.

    These are the channels at the same position in every group of a grouped convolution, so that
    its groups keep equal widths, and all channels of an attention head.
    """
    roots = sorted({r for channels in group.coupled.values() for r in channels})
    parent = {r: r for r in roots}

    def find(r: int) -> int:
        while parent[r] != r:
            r = parent[r]
        return r

    for (name, side), channels in group.coupled.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, _ConvNd) or layer.groups == 1 or is_depthwise(layer):
            continue
        size = (layer.out_channels if side == "out" else layer.in_channels) // layer.groups
        first: dict[int, int] = {}
        for root, members in channels.items():
            for member in members:
                parent[find(root)] = find(first.setdefault(member % size, root))
    for name, width in group.heads.items():
        leaders: dict[int, int] = {}
        for root, members in group.coupled[name, "out"].items():
            for member in members:
                parent[find(root)] = find(leaders.setdefault(member // width, root))
    return _classes(roots, find)


def _classes(roots: Iterable[int], find: Callable[[int], int]) -> list[tuple[int, ...]]:
    classes: defaultdict[int, list[int]] = defaultdict(list)
    for root in roots:
        classes[find(root)].append(root)
    return sorted(tuple(members) for members in classes.values())


def is_shared(part: GroupPart, model: nn.Module) -> bool:
    """Whether several layers compute the channels of `part`, not counting depthwise ones."""
    return sum(not is_depthwise(model.get_submodule(name)) for name in part.layers) > 1


def is_depthwise(layer: nn.Module) -> bool:
    """Whether every output channel has its own single input channel."""
    return (
        isinstance(layer, _ConvNd)
        and layer.groups == layer.out_channels == layer.in_channels
        and layer.groups > 1
    )
