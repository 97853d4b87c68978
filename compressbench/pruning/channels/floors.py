"""The least that pruning can leave of a model, known before anything is measured or trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

from torch import nn

from compressbench.core.errors import CheckFailedError
from compressbench.core.types import Context, DataSpec
from compressbench.pruning.channels.coupling import Coupling, GroupPart
from compressbench.pruning.channels.cutter import Cutter
from compressbench.pruning.channels.limits import (
    LATENCY,
    Limit,
    check_not_met,
    check_reachable,
    count,
    most,
)
from compressbench.pruning.channels.ranking import Ranked, by_root
from compressbench.pruning.channels.removal import Cuts, atoms_of, remove_channels
from compressbench.pruning.channels.settling import example_inputs

COUNTED = ("params", "macs")  # limits that need no file


def deepest(parts: Sequence[GroupPart], round_to: int, least: Callable[[GroupPart], int]) -> Cuts:
    """As many channels as may be removed of each part; which of them does not change the counts."""
    ranked = [Ranked.of(part, lambda part, atom: 0.0, round_to, least(part)) for part in parts]
    return by_root((item, [a for block in item.blocks for a in block]) for item in ranked)


def check_counts(
    model: nn.Module,
    coupling: Coupling,
    cuts: Cuts,
    limits: Mapping[str, Limit],
    spec: DataSpec,
) -> None:
    """Raise LimitError if the model without `cuts` exceeds a limit of parameters or MACs, and
    UserError if the unpruned model meets all limits.

    Where these channels cannot all be removed, the stage finds out itself what can.
    """
    counted = {name: limits[name] for name in COUNTED if name in limits}
    if not counted:
        return
    original, example = deepcopy(model).cpu().eval(), example_inputs(spec)
    before = count(original, example)
    allowed = {name: most(value, before[name]) for name, value in counted.items()}
    if len(counted) == len(limits):
        check_not_met(before, allowed)
    try:
        lowest = count(remove_channels(original, coupling, atoms_of(cuts), example), example)
    except CheckFailedError:
        return
    check_reachable(lowest, allowed)


def check_figures(
    cutter: Cutter, cuts: Cuts, limits: Mapping[str, Limit], context: Context
) -> None:
    """The same for all limits but latency, on exported files, with what `cutter` can remove."""
    measured = {name: value for name, value in limits.items() if name != LATENCY}
    if measured:
        before = cutter.figures(cutter.cut({}), measured, context)
        lowest = cutter.figures(cutter.cut(cuts), measured, context)
        check_reachable(lowest, {n: most(value, before[n]) for n, value in measured.items()})
