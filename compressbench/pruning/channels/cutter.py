"""Smaller models from one: each proven, measured, and described."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from compressbench.core.coverage import coverage
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.layers import layers_with_weights, weights
from compressbench.core.types import Artifact, Context, Coverage, Edit, TimeShare
from compressbench.pruning.channels.coupling import ChannelGroup
from compressbench.pruning.channels.limits import (
    LATENCY,
    Limit,
    already,
    check_measurable,
    count,
    least,
    missed,
    most,
)
from compressbench.pruning.channels.removal import (
    Cuts,
    Removed,
    remove_channels,
    removed_channels,
    resize_edit,
)


@dataclass(frozen=True)
class Cut:
    """A model without some channels, and the edit that makes it."""

    model: nn.Module
    removed: Removed
    edit: Edit


@dataclass
class Cutter:
    """Cuts channels from `model`, the float model of `start`; the same ones once only.

    `timer` gives the time of an artifact over that of the uncut model. `failed` maps roots of
    groups that could not be cut, which then stay, to the reason.
    """

    start: Artifact
    model: nn.Module
    groups: Sequence[ChannelGroup]
    example: Tensor
    timer: TimeShare | None = None
    failed: dict[str, str] = field(default_factory=dict)
    _cuts: dict[str, Cut] = field(default_factory=dict)
    _figures: dict[str, dict[str, float]] = field(default_factory=dict)

    def cut(self, cuts: Cuts) -> Cut:
        """The model without the channels of `cuts` that can be proven to go."""
        wanted = {root: chosen for root, chosen in cuts.items() if root not in self.failed}
        key = json.dumps(wanted, sort_keys=True)
        if key not in self._cuts:
            try:
                small = remove_channels(self.model, self.groups, wanted, self.example)
            except CheckFailedError:
                self._blame(wanted)
                return self.cut(cuts)
            removed = removed_channels(self.groups, wanted)
            self._cuts[key] = Cut(small, removed, resize_edit(self.model, small, removed))
        return self._cuts[key]

    def alone(self, root: str, channels: Sequence[int]) -> nn.Module | None:
        """The model without some channels of one group, not kept; None where they cannot go,
        which then is among the `failed`.
        """
        if root not in self.failed:
            try:
                return remove_channels(self.model, self.groups, {root: channels}, self.example)
            except CheckFailedError as error:
                self.failed[root] = str(error)
        return None

    def _blame(self, cuts: Cuts) -> None:
        """Find the groups that cannot be cut, each tried alone."""
        before = len(self.failed)
        for root, channels in cuts.items():
            self.alone(root, channels)
        if len(self.failed) == before:
            raise CheckFailedError("channels that can be removed one by one cannot go together")

    def figures(self, cut: Cut, names: Collection[str], context: Context) -> dict[str, float]:
        """`params`, `macs`, and where they are among `names` `onnx_bytes` and `latency`, of a cut
        model; each model is measured once.
        """
        key = json.dumps(cut.removed, sort_keys=True)
        if key not in self._figures:
            found = count(cut.model, self.example)
            if "onnx_bytes" in names:
                check_measurable("onnx_bytes", context.export_bytes)
                if context.export_bytes is not None:
                    found["onnx_bytes"] = float(context.export_bytes(self._artifact(cut)))
            if LATENCY in names:
                found[LATENCY] = self.time(cut)
            self._figures[key] = found
        return self._figures[key]

    def time(self, cut: Cut) -> float:
        """The time of a cut model over that of the uncut one, measured anew."""
        if not cut.removed:
            return 1.0
        check_measurable(LATENCY, self.timer)
        return self.timer(self._artifact(cut)) if self.timer is not None else 1.0

    def rows(self, chosen: Cut) -> list[dict[str, Any]]:
        """A row for each model that was measured, the smallest first."""
        mine = json.dumps(chosen.removed, sort_keys=True)
        rows = [{**found, "chosen": key == mine} for key, found in self._figures.items()]
        return sorted(rows, key=lambda row: row["params"])

    def _artifact(self, cut: Cut) -> Artifact:
        return self.start.changed(cut.model, [cut.edit] if cut.removed else [])


def cut_to_limits(
    cutter: Cutter,
    cuts_at: Callable[[float], Cuts],
    limits: Mapping[str, Limit],
    tolerance: float,
    context: Context,
    fewer: Callable[[Cuts], Iterable[Cuts]],
) -> tuple[Cut, str | None, list[dict[str, Any]]]:
    """The least cut that keeps all `limits`; a warning where it misses them by more than
    `tolerance` of them; the figures of all that were tried.

    Blocks are of unequal size, so that the last one saves more than was asked for: others, of
    which `fewer` names the cuts without one, come back as long as the limits are kept. Not under
    a limit of time, whose noise would choose them. The time of the one that is chosen is measured
    again, since the choice favours lucky figures.
    """
    before = cutter.figures(cutter.cut({}), limits, context)
    allowed = {name: most(value, before[name]) for name, value in limits.items()}
    if _fits(before, allowed):
        raise UserError(f"nothing to prune: {already({n: before[n] for n in allowed})}")

    def figures(cut: Cut) -> dict[str, float]:
        return cutter.figures(cut, limits, context)

    found = least(cuts_at, lambda cuts: figures(cutter.cut(cuts)), allowed, 1.0)
    cuts: Cuts = found.trial
    while LATENCY not in limits:
        fitting = (c for c in fewer(cuts) if _fits(figures(cutter.cut(c)), allowed))
        less = next(fitting, None)
        if less is None:
            break
        cuts = less
    cut = cutter.cut(cuts)
    if LATENCY in limits:
        cutter.figures(cut, limits, context)[LATENCY] = cutter.time(cut)
    reached = cutter.figures(cut, limits, context)
    return cut, missed(reached, allowed, tolerance), cutter.rows(cut)


def _fits(figures: Mapping[str, float], allowed: Mapping[str, float]) -> bool:
    return all(figures[name] <= allowed[name] for name in allowed)


def reasons_of(found: Sequence[ChannelGroup], failed: Mapping[str, str]) -> dict[str, str]:
    """Layer -> why its channels stay, of the groups that could not be cut."""
    return {
        name: failed[group.root]
        for group in found
        if group.root in failed
        for name in group.layers()
    }


def narrowed(before: nn.Module, after: nn.Module, left: Mapping[str, str]) -> tuple[Coverage, ...]:
    """One row a module with weights; `touched` counts weights that are gone."""
    changes = {}
    for name, old in layers_with_weights(before).items():
        new = after.get_submodule(name)
        changes[name] = (weights(old) - weights(new), _detail(old, new, left.get(name, "")))
    return coverage(before, changes, left)


def _detail(old: nn.Module, new: nn.Module, reason: str) -> str:
    (wide, wide_in), (narrow, narrow_in) = _widths(old), _widths(new)
    if narrow != wide:
        return f"{wide} → {narrow} channels"
    inputs = f"inputs {wide_in} → {narrow_in}, " if narrow_in != wide_in else ""
    return f"{inputs}{wide} channels left: {reason or 'sparsity and rounding ask for no less'}"


def _widths(layer: nn.Module) -> tuple[int, int]:
    """(output, input) channels, or features."""
    names = (("out_channels", "in_channels"), ("out_features", "in_features"))
    for out, into in names:
        if hasattr(layer, out):
            return getattr(layer, out), getattr(layer, into)
    return 0, 0
