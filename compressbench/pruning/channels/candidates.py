"""Which channels a stage may remove, and why the rest stays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from compressbench.pruning.channels.coupling import Coupling, GroupPart, is_shared
from compressbench.pruning.channels.ranking import Ranked, step_of

NAMED = 3  # layers that a message names for each reason
STEPS = 1 / 6  # share of a layer's channels by which its steps may miss what was asked


def candidates_of(
    coupling: Coupling, model: nn.Module, skip: Collection[str], round_to: int, coupled: bool
) -> tuple[list[GroupPart], dict[str, str]]:
    """The group parts that can be pruned, and a reason for each layer that cannot.

    `skip` are names of layers whose channels stay.
    """
    left = dict(coupling.reasons)
    candidates = []
    for part in coupling.parts:
        held = next((f"coupled with {name}" for name in part.layers if name in skip), "")
        if held:
            left |= dict.fromkeys(part.layers, held)
        elif min(part.widths.values()) <= round_to:
            left |= dict.fromkeys(part.layers, f"no more than {round_to} channels")
        elif len(part.atoms) <= (step := step_of(part, round_to)):
            reason = f"its channels go in steps of {step * part.size} (round_to={round_to})"
            left |= dict.fromkeys(part.layers, reason)
        elif not coupled and is_shared(part, model):
            reason = "other layers share its channels (coupled=false)"
            left |= dict.fromkeys(part.layers, reason)
        else:
            candidates.append(part)
    return candidates, left | dict.fromkeys(skip, "named in skip")


def in_short(left: Mapping[str, str]) -> str:
    """The reasons why layers stay, each with the first layers that it holds."""
    if not left:
        return "it has no convolution or linear layer"
    layers: defaultdict[str, list[str]] = defaultdict(list)
    for name, reason in left.items():
        layers[reason].append(name)
    return "; ".join(f"{_names(names)}: {reason}" for reason, names in layers.items())


def _names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def share_missed(
    ranked: Sequence[Ranked], coupling: Coupling, atoms: Collection[int],
    share: float, slack: float, whole: bool,
) -> tuple[str, ...]:  # fmt: skip
    """Warnings if `atoms` are fewer channels than the asked share, or more; else none.

    Layers are compared one by one, with all their channels, or with `whole` the sum of those that
    can be removed. What the steps explain, half of a block for each part but at most a sixth of the
    channels, and the share `slack` of the channels are no reason to warn.
    """
    fewer: list[str] = []
    more: list[str] = []
    for name, removed, total, step in _counts(ranked, coupling, set(atoms), whole):
        allowed = min(step, total * STEPS) + slack * total + 1e-9
        if abs(share * total - removed) > allowed:
            (fewer if removed < share * total else more).append(f"{removed} of {total}{name}")
    found = []
    if fewer:
        why = "round_to, min_channels, max_layer_sparsity, or what they are coupled with"
        found.append(
            f"fewer channels than {share:.1%} were removed: {_names(fewer)} (others stay: {why})"
        )
    if more:
        why = "they go in larger steps: round_to, or what they are coupled with"
        found.append(f"more channels than {share:.1%} were removed: {_names(more)} ({why})")
    return tuple(found)


def _counts(
    ranked: Sequence[Ranked], coupling: Coupling, gone: set[int], whole: bool
) -> list[tuple[str, int, int, float]]:
    """What is counted: its name, channels removed, all channels, and what the steps explain."""
    longest = {id(item): max((len(b) for b in item.blocks), default=0) for item in ranked}
    if whole:
        removed = sum(item.part.size * len(gone & set(item.part.atoms)) for item in ranked)
        step = max((longest[id(item)] * item.part.size for item in ranked), default=0)
        total = sum(item.part.width for item in ranked)
        return [(" that can be removed", removed, total, step / 2)]
    sides = coupling.removed(gone)
    steps: defaultdict[str, float] = defaultdict(float)
    for item in ranked:
        for name, size in item.part.sizes.items():
            steps[name] += longest[id(item)] * size / 2
    return [
        (f" of {name}", len(sides.get(name, {}).get("out", ())), len(coupling.outputs[name]), step)
        for name, step in steps.items()
    ]
