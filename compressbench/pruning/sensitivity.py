"""Sensitivity to pruning: accuracy and loss against the sparsity of one layer at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from compressbench.analysis.probe import asked_of, probe_batches, probe_of
from compressbench.analysis.weight_trials import totals
from compressbench.core.activation_quantizers import activations_in_float
from compressbench.core.digests import named
from compressbench.core.errors import UserError
from compressbench.core.layers import prunable_layers
from compressbench.core.protocols import Criterion, ModelCriterion
from compressbench.core.types import TRAINED, Artifact, Context, DataSpec, Outcome
from compressbench.core.validation import check_integer, check_share
from compressbench.pruning.layers import check_criterion, check_names, criterion_passes, left_out
from compressbench.pruning.weights.apply import weight_scores
from compressbench.pruning.weights.measured_densities import TYPICAL_LAYERS
from compressbench.pruning.weights.selection import Selection
from compressbench.tasks.choice import task_of

TABLE = "sensitivity"  # name of the stage's table


@dataclass(frozen=True)
class SensitivityCurves:
    """Measure accuracy and loss with one layer at a time pruned; the model itself is not changed.

    Each layer is pruned to each of `sparsities` by the `criterion`. The table `sensitivity` has a
    row for each layer and sparsity, including 0, with `accuracy` (of other tasks, what they
    report while training) and the mean `loss` on `images` training images, not augmented, in
    batches of `batch_size`. BatchNorm normalizes each batch, which approximates statistics measured
    after pruning. Li et al. 2017 (arXiv:1608.08710, section 3.2) measure the same for filters.
    `layers` and `skip` are those of `Prune`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset()
    destroys: ClassVar[frozenset[str]] = frozenset()

    criterion: Criterion | ModelCriterion
    sparsities: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95)
    layers: Sequence[str] | None = None
    skip: Sequence[str] = ()
    images: int = 512
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_criterion(self.criterion)
        check_names("skip", self.skip)
        check_names("layers", ("*",) if self.layers is None else self.layers)
        check_integer("images", self.images, 2)
        check_integer("batch_size", self.batch_size, 2)
        if not isinstance(self.sparsities, (list, tuple)) or not self.sparsities:
            raise UserError(f"sparsities must be a list of numbers, got {self.sparsities!r}")
        for sparsity in self.sparsities:
            check_share("sparsities", sparsity)

    def check_model(self, model: nn.Module, spec: DataSpec) -> None:
        """Reject data without labels and patterns that match no layer, before the recipe runs."""
        if not task_of(spec).learns:
            raise UserError(
                "sensitivity curves show accuracy and loss, and the data have no labels"
            )
        left_out(model, self.skip, self.layers)

    def passes(self, train_images: int) -> tuple[int, int]:
        trained, forwarded = criterion_passes(self.criterion, train_images)
        looks = 1 + len(set(self.sparsities) - {0.0}) * TYPICAL_LAYERS
        return trained, forwarded + min(self.images, train_images) * looks

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        start = inputs["model"]
        model = deepcopy(start.model).cpu().eval()
        left = left_out(model, self.skip, self.layers)
        layers = {n: m for n, m in prunable_layers(model).items() if n not in left}
        if not layers:
            raise UserError("sensitivity: no convolution or linear layer is left to prune")
        with activations_in_float(model):
            scores = weight_scores(self.criterion, model, layers, context)
            probe = probe_of(model, context.runtime.device)
            with activations_in_float(probe):
                rows = self._rows(probe, layers, scores, context)
        return Outcome(start, tables={TABLE: rows})

    def _rows(
        self,
        probe: nn.Module,
        layers: Mapping[str, nn.Module],
        scores: Mapping[str, Tensor],
        context: Context,
    ) -> list[dict[str, Any]]:
        task = task_of(context.data.spec)
        batches = probe_batches(context, self.images, self.batch_size)
        weights = {name: layer.get_parameter("weight").detach() for name, layer in layers.items()}
        sparsities = sorted(set(self.sparsities) - {0.0})
        cases = [(name, sparsity) for name in layers for sparsity in (0.0, *sparsities)]

        def pruned(name: str, sparsity: float) -> dict[str, Tensor]:
            selection = Selection(sparsity, scope="layer")
            weight = weights[name]
            mask = selection.masks({name: layers[name]}, {name: scores[name]}, {name: weight == 0})
            return {name: weight * mask[name]}

        def look(original: Tensor, logits: Tensor, batch: int) -> Sequence[Tensor | float]:
            targets = batches[batch][1]
            loss = task.loss(logits.double(), targets, reduction="sum")
            return *task.quality(logits, targets), loss

        trials = [partial(pruned, *case) if case[1] else dict for case in cases]
        images = [inputs for inputs, _ in batches]
        asked = asked_of(probe, images)
        kept = context.journal.within("sensitivity", json.dumps([asked, cases]), *named(scores))
        sums = totals(probe, images, trials, look, replace(context, journal=kept))
        return [
            {"layer": name, "weights": weights[name].numel(), "sparsity": sparsity,
             task.running: good / number, "loss": loss / number}
            for (name, sparsity), (good, number, loss) in zip(cases, sums, strict=True)
        ]  # fmt: skip
