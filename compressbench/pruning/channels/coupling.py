"""Channels that can only be removed together: groups of layers, and what goes with each channel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compressbench.core.layers import prunable_layers
from compressbench.pruning.channels.shadows import Place, Shadows, Width
from compressbench.pruning.channels.tracing import trace

Side = Literal["out", "in"]
Removed = dict[str, dict[Side, list[int]]]
UNUSED = "the traced output does not depend on it"
WHOLE = "all its channels can only be removed together"


@dataclass(frozen=True)
class GroupPart:
    """Channels that the same layers compute, and that are therefore ranked together.

    An atom is a set of channels that can only be removed together, named by an integer. `channels`
    maps each layer and atom to the output channels of the layer, equally many for each atom.
    `root` names the group: all parts that share a layer.
    """

    root: str
    channels: Mapping[str, Mapping[int, tuple[int, ...]]]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self.channels)

    @property
    def atoms(self) -> tuple[int, ...]:
        return tuple(next(iter(self.channels.values())))

    @property
    def sizes(self) -> dict[str, int]:
        """The number of channels of an atom in each layer."""
        return {name: len(next(iter(atoms.values()))) for name, atoms in self.channels.items()}

    @property
    def size(self) -> int:
        """The number of channels of an atom in the widest layer."""
        return max(self.sizes.values())

    @property
    def widths(self) -> dict[str, int]:
        """The number of channels of all atoms in each layer."""
        return {name: size * len(self.atoms) for name, size in self.sizes.items()}

    @property
    def width(self) -> int:
        """The number of channels in the widest layer."""
        return len(self.atoms) * self.size


@dataclass(frozen=True)
class Coupling:
    """What goes with each channel of a model.

    Labels are integers; where an atom of a part is among them, they go with it. `reasons` says of
    layers why their channels, or some of them, stay; `failed` says it of groups whose removal was
    tried in vain.
    """

    parts: tuple[GroupPart, ...]
    outputs: Mapping[str, Tensor]  # of layers, [out channels]
    inputs: Mapping[str, Tensor]  # of layers, [in channels]
    raws: Mapping[str, Tensor]  # of other parameters and buffers, broadcastable to them
    counted: Mapping[str, Tensor]  # of normalizations, [channels]
    widths: Sequence[Width]  # sizes that modules may have as attributes
    places: Mapping[Place, tuple[int, frozenset[int]]]  # options of reshapes, and their labels
    depthwise: frozenset[str]  # layers with one input channel per group
    reasons: Mapping[str, str]
    failed: Mapping[str, str] = field(default_factory=dict)

    def groups(self) -> dict[str, list[GroupPart]]:
        """The parts of each group, by its root."""
        found: defaultdict[str, list[GroupPart]] = defaultdict(list)
        for part in self.parts:
            found[part.root].append(part)
        return dict(found)

    def removed(self, atoms: Iterable[int]) -> Removed:
        """Map module and side to the channels that go with `atoms`, by their indices."""
        gone = torch.tensor(sorted(atoms), dtype=torch.int64)
        sides: list[tuple[Side, Mapping[str, Tensor]]]
        sides = [("out", self.outputs), ("in", self.inputs), ("out", self.counted)]
        removed: defaultdict[str, dict[Side, list[int]]] = defaultdict(dict)
        for side, labels in sides:
            for name, label in labels.items():
                if side == "in" and name in self.depthwise:
                    continue  # each input goes with its output
                channels = torch.isin(label, gone).nonzero().flatten().tolist()
                if channels:
                    removed[name][side] = channels
        return dict(removed)


def couple(model: nn.Module, example: Tensor, choices: Mapping[Place, int]) -> Coupling:
    """The coupled channels of a model, followed through one pass of `example` [B, ...]."""
    shadows = trace(deepcopy(model), example, choices)
    _hold_whole_axes(shadows)
    outputs = {n: shadows.outputs[n] for n in prunable_layers(model) if n in shadows.outputs}
    return Coupling(
        parts=tuple(_parts(shadows, outputs)),
        outputs=_roots(shadows, outputs),
        inputs=_roots(shadows, shadows.inputs),
        raws=_roots(shadows, shadows.raws),
        counted=_roots(shadows, shadows.counted),
        widths=[Width(w.owner, _root(shadows, w.labels)) for w in shadows.widths],
        places={p: (n, frozenset(_root(shadows, labels).flatten().tolist()))
                for p, (n, labels) in shadows.places.items()},
        depthwise=frozenset(n for n in outputs if _per_input(model.get_submodule(n))),
        reasons=_reasons(shadows, outputs, prunable_layers(model)),
    )  # fmt: skip


def _root(shadows: Shadows, labels: Tensor) -> Tensor:
    return torch.from_numpy(shadows.labels.find(labels)).clone()


def _roots(shadows: Shadows, labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: _root(shadows, label) for name, label in labels.items()}


def _hold_whole_axes(shadows: Shadows) -> None:
    """Fix labels that cover all channels of a layer, and those that no layer reads."""
    for labels in [*shadows.outputs.values(), *shadows.inputs.values(), *shadows.counted.values()]:
        if len(set(shadows.labels.classes(labels).tolist())) == 1:
            shadows.labels.fix(labels, WHOLE)
    read = torch.tensor(
        sorted({r for v in shadows.inputs.values() for r in _root(shadows, v).tolist()})
    )
    for labels in shadows.outputs.values():
        roots = _root(shadows, labels)
        shadows.labels.fix(roots[~torch.isin(roots, read)], UNUSED)


def _reasons(
    shadows: Shadows, outputs: Mapping[str, Tensor], layers: Iterable[str]
) -> dict[str, str]:
    """Why channels of each layer stay: the reason that holds most of them."""
    reasons = {name: shadows.tied(name) or UNUSED for name in layers}
    for name, labels in outputs.items():
        found = [reason for reason in shadows.labels.reasons(labels) if reason]
        reasons[name] = max(found, key=found.count) if found else ""
    return {name: reason for name, reason in reasons.items() if reason}


def _parts(shadows: Shadows, outputs: Mapping[str, Tensor]) -> list[GroupPart]:
    """Removable classes of labels, by the layers that compute them and their sizes there."""
    channels: defaultdict[int, defaultdict[str, list[int]]]
    channels = defaultdict(lambda: defaultdict(list))
    for name, labels in outputs.items():
        for channel, label in enumerate(shadows.labels.classes(labels).tolist()):
            if label > 0:
                channels[label][name].append(channel)
    kinds: defaultdict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
    for label in sorted(channels):
        kinds[tuple((name, len(found)) for name, found in channels[label].items())].append(label)
    roots = _group_roots([[name for name, _ in kind] for kind in kinds])
    return [
        GroupPart(
            roots[kind[0][0]],
            {name: {atom: tuple(channels[atom][name]) for atom in atoms} for name, _ in kind},
        )
        for kind, atoms in kinds.items()
    ]


def _group_roots(sets: Iterable[Sequence[str]]) -> dict[str, str]:
    """Map each layer to the first layer of its group; sets that share a layer are of one group."""
    first: dict[str, str] = {}

    def root(name: str) -> str:
        while first.setdefault(name, name) != name:
            name = first[name]
        return name

    for names in sets:
        for name in names[1:]:
            first[root(name)] = root(names[0])
    return {name: root(name) for name in list(first) + [n for names in sets for n in names]}


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


def _per_input(layer: nn.Module) -> bool:
    """Whether every group has a single input channel."""
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels


def without(coupling: Coupling, failed: Mapping[str, str]) -> Coupling:
    """The coupling without the groups in `failed` (root -> reason)."""
    parts = tuple(part for part in coupling.parts if part.root not in failed)
    held = {n: failed[p.root] for p in coupling.parts if p.root in failed for n in p.layers}
    reasons = {**held, **{n: r for n, r in coupling.reasons.items() if n not in held}}
    return replace(coupling, parts=parts, reasons=reasons, failed={**coupling.failed, **failed})
