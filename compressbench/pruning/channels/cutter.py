"""Builds smaller models by removing channels; verifies, measures and reports each of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from compressbench.core.coverage import coverage
from compressbench.core.errors import CheckFailedError
from compressbench.core.layers import layers_with_weights, weights
from compressbench.core.types import Artifact, Context, Coverage, Edit, TimeShare
from compressbench.pruning.channels.coupling import Coupling, GroupPart, Removed
from compressbench.pruning.channels.limits import (
    LATENCY,
    Limit,
    check_measurable,
    check_not_met,
    count,
    least,
    missed,
    most,
)
from compressbench.pruning.channels.removal import (
    Cuts,
    atoms_of,
    failing,
    remove_channels,
    resize_edit,
)

OTHER = "only the channels of convolutions and linear layers are chosen"


@dataclass(frozen=True)
class Cut:
    """A model without some channels, and the edit that produces it."""

    model: nn.Module
    removed: Removed
    edit: Edit
    atoms: tuple[int, ...]


@dataclass
class Cutter:
    """Removes channels from `model`, the float model of `start`, and caches the results.

    `timer` returns the latency of an artifact relative to the unpruned model. `failed` maps the
    roots of groups whose channels could not be removed, and are kept, to the reason.
    """

    start: Artifact
    model: nn.Module
    coupling: Coupling
    example: Tensor
    timer: TimeShare | None = None
    failed: dict[str, str] = field(default_factory=dict)
    _cuts: dict[str, Cut] = field(default_factory=dict)
    _figures: dict[str, dict[str, float]] = field(default_factory=dict)

    def cut(self, cuts: Cuts) -> Cut:
        """The model without the channels of `cuts`, except those whose removal fails."""
        wanted = {root: chosen for root, chosen in cuts.items() if root not in self.failed}
        key = json.dumps(wanted, sort_keys=True)
        if key not in self._cuts:
            try:
                small = self._without(wanted)
            except CheckFailedError:
                self._blame(wanted)
                return self.cut(cuts)
            atoms = tuple(atoms_of(wanted))
            removed = self.coupling.removed(atoms)
            edit = resize_edit(self.model, small, removed)
            self._cuts[key] = Cut(small, removed, edit, atoms)
        return self._cuts[key]

    def _without(self, cuts: Cuts) -> nn.Module:
        return remove_channels(self.model, self.coupling, atoms_of(cuts), self.example)

    def alone(self, root: str, atoms: Sequence[int]) -> nn.Module | None:
        """The model without some channels of a single group, not cached.

        Returns None if they cannot be removed, and adds the group to `failed`.
        """
        if root not in self.failed:
            try:
                return self._without({root: atoms})
            except CheckFailedError as error:
                self.failed[root] = str(error)
        return None

    def _blame(self, cuts: Cuts) -> None:
        """Add to `failed` the groups whose channels cannot be removed."""

        def attempt(atoms: Sequence[int]) -> str:
            try:
                remove_channels(self.model, self.coupling, atoms, self.example)
            except CheckFailedError as error:
                return str(error)
            return ""

        self.failed |= failing(cuts, attempt)

    def figures(self, cut: Cut, names: Collection[str], context: Context) -> dict[str, float]:
        """The figures of a pruned model: `params`, `macs`, and if in `names` also `onnx_bytes` and
        `latency`. Each model is measured once.
        """
        key = json.dumps(cut.removed, sort_keys=True)
        if key not in self._figures:
            values = count(cut.model, self.example)
            if "onnx_bytes" in names:
                check_measurable("onnx_bytes", context.export_bytes)
                if context.export_bytes is not None:
                    values["onnx_bytes"] = float(context.export_bytes(self._artifact(cut)))
            if LATENCY in names:
                values[LATENCY] = self.time(cut)
            self._figures[key] = values
        return self._figures[key]

    def time(self, cut: Cut) -> float:
        """Measure the latency of a pruned model, relative to the unpruned one; not cached."""
        if not cut.removed:
            return 1.0
        check_measurable(LATENCY, self.timer)
        return self.timer(self._artifact(cut)) if self.timer is not None else 1.0

    def rows(self, chosen: Cut) -> list[dict[str, Any]]:
        """A table row for each measured model, by ascending number of parameters."""
        chosen_key = json.dumps(chosen.removed, sort_keys=True)
        rows = [{**values, "chosen": key == chosen_key} for key, values in self._figures.items()]
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
    """Find the smallest cut that meets all `limits`.

    Blocks differ in size, so the last one may save more than needed. Blocks are therefore put
    back while the limits still hold, except with a latency limit, where noise would decide. The
    latency of the chosen model is measured again, since the search favors lucky measurements.

    Args:
        cutter: Builds and measures the models.
        cuts_at: The channels to remove for a share in [0, 1].
        limits: The limits by name.
        tolerance: Relative distance from the limits above which a warning is returned.
        context: Exports files.
        fewer: Variants of cuts, each with one block put back.

    Returns:
        The chosen cut, a warning or None, and a table row for each model that was measured.
    """
    before = cutter.figures(cutter.cut({}), limits, context)
    allowed = {name: most(value, before[name]) for name, value in limits.items()}
    check_not_met(before, allowed)

    def figures(cut: Cut) -> dict[str, float]:
        return cutter.figures(cut, limits, context)

    cuts: Cuts = least(cuts_at, lambda cuts: figures(cutter.cut(cuts)), allowed, 1.0).trial
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


def reasons_of(parts: Sequence[GroupPart], failed: Mapping[str, str]) -> dict[str, str]:
    """Map the layers of groups that could not be pruned to the reason."""
    return {n: failed[part.root] for part in parts if part.root in failed for n in part.layers}


def narrowed(before: nn.Module, after: nn.Module, left: Mapping[str, str]) -> tuple[Coverage, ...]:
    """Coverage with a row for each module with weights; `touched` counts removed weights."""
    changes = {}
    for name, old in layers_with_weights(before).items():
        new = after.get_submodule(name)
        changes[name] = (weights(old) - weights(new), _detail(old, new, left.get(name, "")))
    return coverage(before, changes, left)


def _detail(old: nn.Module, new: nn.Module, reason: str) -> str:
    (wide, wide_in), (narrow, narrow_in) = _widths(old), _widths(new)
    if narrow != wide:
        return f"{wide} → {narrow} channels"
    if not wide:
        return "its channels follow" if weights(new) < weights(old) else f"left: {reason or OTHER}"
    inputs = f"inputs {wide_in} → {narrow_in}, " if narrow_in != wide_in else ""
    return f"{inputs}{wide} channels left: {reason or 'sparsity and rounding remove none'}"


def _widths(layer: nn.Module) -> tuple[int, int]:
    """(output, input) channels, or features."""
    names = (("out_channels", "in_channels"), ("out_features", "in_features"))
    for out, into in names:
        if hasattr(layer, out):
            return getattr(layer, out), getattr(layer, into)
    return 0, 0
