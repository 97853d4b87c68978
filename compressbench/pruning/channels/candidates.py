"""Which channels a stage may remove, and why the rest stays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from torch import nn

from compressbench.pruning.channels.coupling import Coupling, GroupPart, is_shared
from compressbench.pruning.channels.ranking import Ranked

NAMED = 3  # layers that a message names for each reason


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
        elif not coupled and is_shared(part, model):
            reason = "other layers share its channels (coupled=false)"
            left |= dict.fromkeys(part.layers, reason)
        else:
            candidates.append(part)
    return candidates, left | dict.fromkeys(skip, "named in skip")


def in_short(left: Mapping[str, str]) -> str:
    """The reasons why layers stay, each with the first layers that it holds."""
    layers: defaultdict[str, list[str]] = defaultdict(list)
    for name, reason in left.items():
        layers[reason].append(name)
    return "; ".join(f"{_names(names)}: {reason}" for reason, names in layers.items())


def _names(names: Sequence[str]) -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def share_missed(
    pools: Sequence[Sequence[Ranked]], atoms: Collection[int], share: float
) -> str | None:
    """A warning where less than the share of channels goes, by more than the steps explain.

    `pools` are the parts that are ranked together; blocks are taken as long as they bring the sum
    nearer to the share, so it is missed by half of a block at most, unless no block is left.
    """
    gone = set(atoms)
    whole = sum(item.part.width for pool in pools for item in pool)
    wanted = share * whole
    removed, steps = 0, 0.0
    for item in (item for pool in pools for item in pool):
        removed += item.part.size * len(gone & set(item.part.atoms))
        steps += max((len(b) for b in item.blocks), default=0) * item.part.size / 2
    if wanted - removed <= steps + 1e-9:
        return None
    return (
        f"{removed / whole:.1%} of the channels that can be removed were removed, {share:.1%} were "
        "asked for: min_channels, max_layer_sparsity, round_to or a failed removal keeps the rest"
    )
