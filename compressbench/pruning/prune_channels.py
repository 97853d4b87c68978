"""Structured pruning: removes whole channels, with everything that depends on them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, get_args

from torch import Tensor, nn

from compressbench.core.digests import digest
from compressbench.core.distributed import assert_same_on_ranks
from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.layers import prunable_layers
from compressbench.core.protocols import Criterion, ModelCriterion
from compressbench.core.types import (
    CHANNEL_PRUNED,
    QUANTIZED,
    TRAINED,
    Artifact,
    Context,
    DataSpec,
    Outcome,
    TimeShare,
)
from compressbench.core.validation import check_flag, check_integer, check_positive, check_share
from compressbench.pruning.channels.candidates import candidates_of, in_short, share_missed
from compressbench.pruning.channels.coupling import (
    Coupling,
    GroupPart,
)
from compressbench.pruning.channels.cutter import Cutter, cut_to_limits, narrowed, reasons_of
from compressbench.pruning.channels.floors import check_counts, check_figures, deepest
from compressbench.pruning.channels.limits import check_limit
from compressbench.pruning.channels.measured_widths import IMAGES, TYPICAL_BLOCKS, by_damage
from compressbench.pruning.channels.ranking import (
    Ranked,
    Worth,
    below,
    by_root,
    channel_scores,
    choose,
    choose_below,
    mean_worth,
    without_one,
)
from compressbench.pruning.channels.removal import Cuts, check_replay, kept_channels
from compressbench.pruning.channels.settling import (
    example_inputs,
    planned_coupling,
    settled_coupling,
)
from compressbench.pruning.criteria.mean_activation import MeanActivation
from compressbench.pruning.criteria.scores import scores_of
from compressbench.pruning.layers import check_criterion, check_names, criterion_passes, skipped
from compressbench.training.batchnorm import BatchNormOptions

Scope = Literal["global", "layer", "sensitivity"]
TABLE = "limits"  # name of the stage's table
FLOOR = 0.1  # share of a layer's channels that is kept by default


@dataclass(frozen=True)
class PruneChannels(BatchNormOptions):
    """Remove the least important output channels, with everything that depends on them.

    Exactly one target must be given: `sparsity`, `threshold` or limits (`params`, `macs` of one
    sample, `onnx_bytes`, `latency`), which must all hold. A limit is a number (not for latency), a
    share in (0, 1) of the unpruned model's value, or "2x" for half of it. Limits are met by
    bisection on actual smaller models, listed in the table `limits`. Latency is measured in
    interleaved pairs with the unpruned model, so its result is specific to this machine.

    The importance of a channel is the criterion's score, summed over its weights if these are
    scored, and averaged over coupled layers (additions, concatenations, depthwise convolutions),
    whose channels are removed together and counted once. Never pruned are the model's outputs,
    layers that match `skip`, layers no wider than `round_to`, and layers where a smaller model
    fails the check that the rest computes the same; the coverage gives the reason.

    Args:
        sparsity: Share in [0, 1) of the channels to remove.
        threshold: Remove all channels of lower importance, which is not normalized then.
        activation_threshold: With `threshold`, also remove channels with a lower mean |output|.
        tolerance: Allowed relative excess of a latency, and shortfall from limits before a warning.
        scope: "layer" removes the share from each set of coupled layers, "global" from all
            channels in one ranking, "sensitivity" by measured cost per saving (`by_damage`).
        normalize: Divide importance by the mean of its layer.
        round_to: The remaining channels of a layer are a multiple of this.
        min_channels: Least number of channels to keep in a layer.
        max_layer_sparsity: Largest share to remove from a layer; if this and `min_channels` are
            None, a tenth of the channels and at least `round_to` are kept.
        coupled: False keeps channels that several layers share (residuals, attention heads).
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset({CHANNEL_PRUNED})
    destroys: ClassVar[frozenset[str]] = QUANTIZED

    criterion: Criterion | ModelCriterion
    sparsity: float | None = None
    threshold: float | None = None
    activation_threshold: float | None = None
    params: int | float | str | None = None
    macs: int | float | str | None = None
    onnx_bytes: int | float | str | None = None
    latency: float | str | None = None
    tolerance: float = 0.05
    scope: Scope = "layer"
    normalize: bool = True
    round_to: int = 8
    min_channels: int | None = None
    max_layer_sparsity: float | None = None
    skip: Sequence[str] = ()
    coupled: bool = True

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        check_names("skip", self.skip)
        if self.scope not in get_args(Scope):
            raise UserError(f'scope must be "layer", "global" or "sensitivity", got {self.scope!r}')
        check_share("tolerance", self.tolerance)
        check_flag("normalize", self.normalize)
        check_flag("coupled", self.coupled)
        check_integer("round_to", self.round_to, 1)
        self.check_batchnorm()
        if self.min_channels is not None:
            check_integer("min_channels", self.min_channels, 1)
        if self.max_layer_sparsity is not None:
            check_share("max_layer_sparsity", self.max_layer_sparsity)
        self._check_target()

    def _check_target(self) -> None:
        if self.sparsity is not None:
            check_share("sparsity", self.sparsity)
        for name in ("threshold", "activation_threshold"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        for name, value in self.limits().items():
            check_limit(name, value)
        given = [n for n in ("sparsity", "threshold") if getattr(self, n) is not None]
        given += [", ".join(self.limits())] if self.limits() else []
        if len(given) != 1:
            raise UserError(
                "exactly one target must be set: sparsity, threshold, or limits (params, macs, "
                f"onnx_bytes, latency), got {' and '.join(given) or 'none'}"
            )
        if self.scope == "sensitivity" and self.threshold is not None:
            raise UserError("scope=sensitivity needs sparsity or limits, got a threshold")
        if self.activation_threshold is not None and self.threshold is None:
            raise UserError("activation_threshold needs threshold: set both")

    def limits(self) -> dict[str, int | float | str]:
        """The limits that are set, by name."""
        names = ("params", "macs", "onnx_bytes", "latency")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    @property
    def weighs_files(self) -> bool:
        return self.onnx_bytes is not None

    @property
    def times_files(self) -> bool:
        return self.latency is not None

    def check_model(self, model: nn.Module, spec: DataSpec) -> None:
        """Reject, before the recipe runs, patterns in `skip` that match no layer, and models of
        which no channel can be removed.
        """
        skipped(self.skip, prunable_layers(model))
        try:
            coupling = planned_coupling(model, spec)
        except (CheckFailedError, RuntimeError) as error:  # RuntimeError: cannot be copied
            raise UserError(str(error).partition("\n")[0]) from error
        candidates, left = self._candidates(model, coupling)
        if not candidates:
            raise UserError(f"no channel can be removed ({in_short(left)})")

    def check_limits(self, model: nn.Module, spec: DataSpec) -> None:
        """Reject limits of parameters or MACs that the least widths do not meet."""
        if self.limits():
            coupling = planned_coupling(model, spec)
            cuts = deepest(self._candidates(model, coupling)[0], self.round_to, self._least)
            check_counts(model, coupling, cuts, self.limits(), spec)

    def passes(self, train_images: int) -> tuple[int, int]:
        trained, forwarded = criterion_passes(self.criterion, train_images)
        forwarded += self.batchnorm_passes(train_images)
        if self.scope == "sensitivity":
            forwarded += min(IMAGES, train_images) * TYPICAL_BLOCKS
        return trained, forwarded

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        start = inputs["model"]
        original = deepcopy(start.model).cpu().eval()
        example = example_inputs(context.data.spec)
        coupling = settled_coupling(original, example)
        candidates, left = self._candidates(original, coupling)
        if not candidates:
            raise CheckFailedError(self._nothing([], left))
        cutter = Cutter(start, original, coupling, example, self._timer(start, context))
        if self.scope == "sensitivity":  # which takes minutes
            cuts = deepest(candidates, self.round_to, self._least)
            check_figures(Cutter(start, original, coupling, example), cuts, self.limits(), context)
        ranked = self._ranked(cutter, candidates, context)
        tables: dict[str, list[dict[str, Any]]] = {}
        if self.limits():
            cut, warning, tables[TABLE] = cut_to_limits(
                cutter, partial(self._cuts, ranked), self.limits(), self.tolerance, context,
                lambda cuts: [] if self.scope == "layer" else without_one(ranked, cuts),
            )  # fmt: skip
            warnings: tuple[str, ...] = (warning,) if warning else ()
        else:
            cut = cutter.cut(self._cuts(ranked, self.sparsity or 0.0))
            share, whole = self.sparsity or 0.0, self.scope != "layer"
            warnings = share_missed(ranked, coupling, cut.atoms, share, self.tolerance, whole)
        left |= reasons_of(coupling.parts, cutter.failed)
        assert_same_on_ranks(_digest(cut.removed), "which channels were removed")
        coverage = narrowed(original, cut.model, left)
        if not cut.removed:
            raise CheckFailedError(self._nothing([] if cutter.failed else candidates, left))
        check_replay(original, cut.model, cut.edit, example)
        kept = kept_channels(original, cut.removed)
        self.update_batchnorm_(cut.model, original, context, kept)
        artifact = start.changed(cut.model, [cut.edit], self.adds)
        artifact = replace(artifact, early={})  # early weights have other shapes
        failed = {**coupling.failed, **cutter.failed}
        warnings += tuple(f"channels of {n} were kept: {why}" for n, why in failed.items())
        return Outcome(artifact, coverage, warnings=warnings, tables=tables)

    def _timer(self, start: Artifact, context: Context) -> TimeShare | None:
        if self.latency is None or context.timed_against is None:
            return None
        return context.timed_against(start)

    def _candidates(
        self, model: nn.Module, coupling: Coupling
    ) -> tuple[list[GroupPart], dict[str, str]]:
        names = skipped(self.skip, prunable_layers(model))
        return candidates_of(coupling, model, names, self.round_to, self.coupled)

    def _ranked(
        self, cutter: Cutter, candidates: list[GroupPart], context: Context
    ) -> list[Ranked]:
        model = cutter.model
        chosen = {name for part in candidates for name in part.layers}
        layers = {name: m for name, m in prunable_layers(model).items() if name in chosen}
        worth = self._worth(model, layers, context)
        ranked = [Ranked.of(part, worth, self.round_to, self._least(part)) for part in candidates]
        if self.scope == "sensitivity":
            return by_damage(ranked, cutter, list(self.limits()), context)
        return ranked

    def _cuts(self, ranked: list[Ranked], share: float) -> Cuts:
        """Map the root of each group to the channels of the root to remove."""
        if self.threshold is not None:
            return by_root(choose_below(ranked))
        pools = [[part] for part in ranked] if self.scope == "layer" else [ranked]
        return by_root(pair for pool in pools for pair in choose(pool, share))

    def _worth(self, model: nn.Module, layers: Mapping[str, nn.Module], context: Context) -> Worth:
        def scores_by(criterion: Criterion | ModelCriterion) -> dict[str, Tensor]:
            scores = scores_of(criterion, model, layers, context)
            relative = self.normalize and self.threshold is None
            return channel_scores(scores, layers, relative)

        if self.threshold is None:
            return partial(mean_worth, scores=scores_by(self.criterion))
        parts = [(scores_by(self.criterion), self.threshold)]
        if self.activation_threshold is not None:
            parts.append((scores_by(MeanActivation()), self.activation_threshold))
        return below(parts)

    def _least(self, part: GroupPart) -> int:
        """The least number of atoms to keep, so that every layer keeps its least width."""
        sizes = part.sizes
        return max(math.ceil(self._floor(w) / sizes[n]) for n, w in part.widths.items())

    def _floor(self, width: int) -> int:
        if self.min_channels is None and self.max_layer_sparsity is None:
            return max(self.round_to, math.ceil(FLOOR * width))
        share = 1.0 if self.max_layer_sparsity is None else self.max_layer_sparsity
        return max(self.min_channels or 1, math.ceil((1.0 - share) * width - 1e-9))

    def _nothing(self, candidates: list[GroupPart], left: Mapping[str, str]) -> str:
        if not candidates:
            return f"prune_channels changed nothing: no layer can be pruned ({in_short(left)})"
        widest = max(part.width for part in candidates)
        named = "sparsity" if self.threshold is None else "threshold"
        return (
            f"prune_channels changed nothing: {named}={getattr(self, named)} with round_to="
            f"{self.round_to} and at most {widest} channels in a layer removes none"
        )


def _digest(removed: object) -> str:
    return digest([json.dumps(removed, sort_keys=True)])
