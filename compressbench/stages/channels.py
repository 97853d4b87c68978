"""Structured pruning: whole channels are removed, with everything that depends on them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from compressbench.checks import check_integer, check_share
from compressbench.collectives import assert_same_on_ranks
from compressbench.core import (
    ACTIVATION_QUANTIZED,
    CHANNEL_PRUNED,
    TRAINED,
    WEIGHT_QUANTIZED,
    Artifact,
    CheckFailedError,
    Context,
    Coverage,
    Criterion,
    DataSpec,
    ModelCriterion,
    Outcome,
    UserError,
)
from compressbench.criteria.scores import scores_of
from compressbench.stages.batchnorm import reestimate_batchnorm_
from compressbench.stages.coupling import Family, Unit, families, units
from compressbench.stages.layers import (
    check_criterion,
    check_names,
    forward_images,
    layers_with_weights,
    prunable_layers,
    skipped,
    weights,
)
from compressbench.stages.ranking import Ranked, channel_scores, choose
from compressbench.stages.removal import (
    Cuts,
    check_replay,
    remove_channels,
    removed_channels,
    resize_edit,
)

EXAMPLES = 4  # samples of the proofs
Scope = Literal["global", "layer"]
FLOOR = 0.1  # of a layer's channels, which stay by default


@dataclass(frozen=True)
class PruneChannels:
    """Remove the output channels of least importance, about the share `sparsity` of them.

    A channel's importance: the sum over its weights by the criterion, over the mean of its layer;
    the mean over the layers that are coupled (added, concatenated, depthwise, ...), whose channels
    go together. `scope` "layer" takes the share from each set of coupled layers, "global" from
    all channels by one ranking, sets of coupled layers counting once. The channels that stay in a
    layer are a multiple of `round_to`, as near to the share as that allows, and at least
    `min_channels` (None: a tenth, and `round_to`). The model's outputs stay, and so do the
    channels of layers that match `skip` (names or fnmatch patterns), layers no wider than
    `round_to`, and layers for which it cannot be proven that the rest computes the same; the
    coverage says why. BatchNorm statistics are then measured on `batchnorm_images` images.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset({CHANNEL_PRUNED})
    destroys: ClassVar[frozenset[str]] = frozenset({WEIGHT_QUANTIZED, ACTIVATION_QUANTIZED})

    criterion: Criterion | ModelCriterion
    sparsity: float
    scope: Scope = "layer"
    round_to: int = 8
    min_channels: int | None = None
    skip: Sequence[str] = ()
    batchnorm_images: int = 1024

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        check_names("skip", self.skip)
        if self.scope not in ("global", "layer"):
            raise UserError(f'scope must be "global" or "layer", got {self.scope!r}')
        check_share("sparsity", self.sparsity)
        check_integer("round_to", self.round_to, 1)
        check_integer("batchnorm_images", self.batchnorm_images, 2)
        if self.min_channels is not None:
            check_integer("min_channels", self.min_channels, 1)

    def passes(self, train_images: int) -> tuple[int, int]:
        looked_at = (self.batchnorm_images, forward_images(self.criterion))
        return 0, sum(min(images, train_images) for images in looked_at)

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        start = inputs["model"]
        original = deepcopy(start.model).cpu().eval()
        example = example_inputs(context.data.spec)
        found = families(deepcopy(original), example)
        candidates, left = self._candidates(original, found)
        cuts = self._cuts(original, candidates, context)
        model, cuts, failed = _remove(original, found, cuts, example)
        left |= _reasons_of(found, failed)
        removed = removed_channels(found, cuts)
        assert_same_on_ranks(_digest(removed), "which channels were removed")
        coverage = _coverage(original, model, left)
        if not removed:
            raise CheckFailedError(self._nothing([] if failed else candidates, left))
        edit = resize_edit(original, model, removed)
        check_replay(original, model, edit, example)
        reestimate_batchnorm_(model, context, self.batchnorm_images)
        artifact = replace(
            start,
            model=model.eval(),
            edits=(*start.edits, edit),
            properties=start.properties | self.adds,
            key="",
        )
        warnings = tuple(f"channels of {root} stay: {reason}" for root, reason in failed.items())
        return Outcome(artifact, coverage, warnings=warnings)

    def _candidates(
        self, model: nn.Module, found: Sequence[Family]
    ) -> tuple[list[Unit], dict[str, str]]:
        """The units to choose from; layer -> reason, of the others."""
        names = skipped(self.skip, prunable_layers(model))
        left = dict.fromkeys(prunable_layers(model), "autograd finds no way from the output to it")
        candidates = []
        for family in found:
            held = [name for name in family.layers() if name in names]
            parts, reason = ([], f"coupled with {held[0]}") if held else units(family, model)
            if family.reason or reason:
                left |= dict.fromkeys(family.layers(), family.reason or reason)
            else:
                left = {name: why for name, why in left.items() if name not in family.layers()}
                wide = [unit for unit in parts if unit.width > self.round_to]
                narrow = [name for unit in parts if unit not in wide for name in unit.layers]
                left |= dict.fromkeys(narrow, f"no more than {self.round_to} channels")
                candidates.extend(wide)
        return candidates, left | dict.fromkeys(names, "named in skip")

    def _cuts(self, model: nn.Module, candidates: list[Unit], context: Context) -> Cuts:
        """Root of a family -> the channels of the root to remove."""
        layers = {n: m for n, m in prunable_layers(model).items() if _is_out(n, candidates)}
        scores = channel_scores(scores_of(self.criterion, model, layers, context), layers)
        ranked = [
            Ranked.of(unit, scores, self.round_to, self._floor(unit.width)) for unit in candidates
        ]
        pools = [ranked] if self.scope == "global" else [[one] for one in ranked]
        cuts: dict[str, list[int]] = {}
        for pool in pools:
            for one, atoms in choose(pool, self.sparsity):
                channels = [channel for atom in atoms for channel in atom]
                if channels:
                    cuts.setdefault(one.unit.family.root, []).extend(channels)
        return {root: sorted(channels) for root, channels in cuts.items()}

    def _floor(self, width: int) -> int:
        if self.min_channels is not None:
            return self.min_channels
        return max(self.round_to, math.ceil(FLOOR * width))

    def _nothing(self, candidates: list[Unit], left: Mapping[str, str]) -> str:
        if not candidates:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items())
            return f"prune_channels touched nothing: no layer can be pruned ({reasons})"
        widest = max(unit.width for unit in candidates)
        return (
            f"prune_channels touched nothing: sparsity={self.sparsity} with round_to="
            f"{self.round_to} and at most {widest} channels in a layer removes none"
        )


def example_inputs(spec: DataSpec) -> Tensor:
    """A few normal samples, the same in every process."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(EXAMPLES, *spec.input_shape, generator=generator)


def _is_out(name: str, candidates: Sequence[Unit]) -> bool:
    return any(name in unit.layers for unit in candidates)


def _remove(
    model: nn.Module, found: Sequence[Family], cuts: Cuts, example: Tensor
) -> tuple[nn.Module, Cuts, dict[str, str]]:
    """Remove what can be proven; also the cuts that were made, and root -> reason of the others."""
    try:
        return remove_channels(model, found, cuts, example), cuts, {}
    except CheckFailedError:
        failed = {}
        for root, channels in cuts.items():
            try:
                remove_channels(model, found, {root: channels}, example)
            except CheckFailedError as error:
                failed[root] = str(error)
    proven = {root: channels for root, channels in cuts.items() if root not in failed}
    return remove_channels(model, found, proven, example), proven, failed


def _reasons_of(found: Sequence[Family], failed: Mapping[str, str]) -> dict[str, str]:
    return {
        name: failed[family.root]
        for family in found
        if family.root in failed
        for name in family.layers()
    }


def _digest(removed: object) -> str:
    return hashlib.sha256(json.dumps(removed, sort_keys=True).encode()).hexdigest()


def _coverage(before: nn.Module, after: nn.Module, left: Mapping[str, str]) -> tuple[Coverage, ...]:
    """One row a module with weights; `touched` counts weights that are gone."""
    rows = []
    for name, old in layers_with_weights(before).items():
        new = after.get_submodule(name)
        total, remaining = weights(old), weights(new)
        detail = _detail(old, new, left.get(name, ""))
        touched = total - remaining
        rows.append(Coverage(name or "model", type(old).__name__, total, touched, detail))
    return tuple(rows)


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
