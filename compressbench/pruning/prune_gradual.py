"""Gradual pruning: raises the sparsity step by step during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from compressbench.core.edits import apply_mask_, masked_layers, set_mask_
from compressbench.core.errors import UserError
from compressbench.core.layers import prunable_layers, weight_owners
from compressbench.core.protocols import Criterion, LearntCriterion, ModelCriterion
from compressbench.core.types import (
    MASKED,
    QUANTIZED,
    TRAINED,
    Artifact,
    Context,
    DataSpec,
    Outcome,
)
from compressbench.core.validation import check_integer, check_share
from compressbench.pruning.layers import criterion_passes
from compressbench.pruning.prune import Prune, PruneOptions, prune_once
from compressbench.pruning.weights.apply import mask_, nonzero_weights, zeroed
from compressbench.pruning.weights.learned_scores import Given, LearntScores
from compressbench.training.fits.schedule import schedule_of
from compressbench.training.teaching import objective


@dataclass(frozen=True)
class PruneGradually(objective.TaughtFitOptions, PruneOptions):
    """Train while the sparsity rises to `sparsity`.

    At `updates` steps, evenly spread over the first share `until` of all training steps, the
    least important weights are pruned to the sparsity

        s(t) = sparsity + (start - sparsity) (1 - t)^3,  t from 0 to 1,

    which rises fast at first and slowly at the end (Zhu and Gupta 2017, arXiv:1710.01878);
    `start` is the sparsity before the stage. Importance is computed from the current weights.
    Pruned weights stay zero, except with a criterion learned during training (`movement`), which
    can restore weights pruned by this stage until the last update.

    `scope` (except "sensitivity"), `normalize`, `pattern` (blocks only), `layers` and `skip` are
    those of `Prune`; `epochs`, `batch_size`, `optimizer` and `warmup` those of `Schedule`. With a
    distillation `loss` the recipe must name a `teacher`; otherwise the loss is cross-entropy with
    `label_smoothing`.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset({MASKED})
    destroys: ClassVar[frozenset[str]] = QUANTIZED

    criterion: Criterion | ModelCriterion | LearntCriterion
    sparsity: float
    updates: int = 20
    until: float = 0.75

    def __post_init__(self) -> None:
        objective.check_fit(self)
        self.prune(self.sparsity)
        check_integer("updates", self.updates, 1)
        check_share("until", self.until)
        if self.scope == "sensitivity":
            raise UserError("scope=sensitivity would be measured at each update: choose another")
        if hasattr(self.criterion, "update"):
            raise UserError(
                "a criterion that updates weights cannot be combined with training: choose another"
            )

    def prune(self, sparsity: float, learnt: Mapping[str, Tensor] | None = None) -> Prune:
        """The pruning of one update; `learnt` are the scores so far of a learned criterion."""
        criterion = self.criterion
        if isinstance(criterion, LearntCriterion):
            criterion = Given(learnt or {})
        return prune_once(self, criterion, sparsity)

    def check_model(self, model: nn.Module, spec: DataSpec) -> None:
        """Reject names that match no layer and patterns that do not fit, before the recipe runs."""
        self.prune(self.sparsity).left(model)

    check_teachers = objective.check_teachers

    def passes(self, train_images: int) -> tuple[int, int]:
        trained = round(self.epochs * train_images)
        backward, forward = criterion_passes(self.criterion, train_images)
        return trained + self.updates * backward, self.updates * forward

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        from compressbench.training.fits.fit import fit_  # Lightning takes seconds to import

        start = inputs["model"]
        model = deepcopy(start.model)
        left = self.prune(self.sparsity).left(model)
        layers = {n: m for n, m in prunable_layers(model).items() if n not in left}
        if not layers:
            raise UserError("prune_gradual: no convolution or linear layer is left to prune")
        before = nonzero_weights(layers)
        masked = set(masked_layers(model))
        for layer in layers.values():
            set_mask_(layer, _weight(layer) != 0)
        rising = _Rising(self, model, list(layers), context)
        schedule = schedule_of(self)
        history, notes = objective.learn_(
            model, inputs, self.loss, self.label_smoothing, schedule, context,
            lambda loss: fit_(model, loss, schedule, context, callback=rising),
        )  # fmt: skip
        masks = {n: layer.get_buffer("weight_mask") for n, layer in layers.items()}
        for name, layer in layers.items():
            if name not in masked:
                del layer.weight_mask
        edits = mask_(layers, masks)
        coverage = zeroed(model, before, left)
        history = {**history, "prune/sparsity": rising.reached}
        return Outcome(start.changed(model, edits, self.adds), coverage, history, notes=notes)

    def sparsity_at(self, t: float, start: float) -> float:
        """The sparsity at `t` in [0, 1], rising from `start`."""
        return self.sparsity + (start - self.sparsity) * (1.0 - t) ** 3


class _Rising:
    """Training callback that prunes at the scheduled steps; `reached` has a sparsity per epoch."""

    def __init__(
        self, stage: PruneGradually, model: nn.Module, names: Sequence[str], context: Context
    ) -> None:
        self.stage, self.names, self.context = stage, names, context
        self.start = self.current = _share_zero(model, names)
        self.reached: list[float] = []
        criterion = stage.criterion
        self.learnt = (
            LearntScores(criterion, model, names)
            if isinstance(criterion, LearntCriterion)
            else None
        )

    def before_step(self, model: nn.Module, rate: float) -> None:
        if self.learnt is not None:
            self.learnt.add_(model, rate)

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        last = max(1, round(self.stage.until * steps))
        due = {max(1, round(last * n / self.stage.updates)) for n in range(1, self.stage.updates)}
        if step in due | {last}:
            self.tighten_(model, self.stage.sparsity_at(min(1.0, step / last), self.start))

    def tighten_(self, model: nn.Module, sparsity: float) -> None:
        """Prune the weights that are least important now, to `sparsity`."""
        probe = deepcopy(model).cpu().eval().requires_grad_(True)
        scores = None
        if self.learnt is not None:
            scores = self.learnt.scores
            self.learnt.restore_(probe)
        layers = {name: probe.get_submodule(name) for name in self.names}
        stage = self.stage.prune(min(sparsity, self.stage.sparsity), scores)
        masks = stage.masks(probe, layers, self.context)
        if self.learnt is not None:
            self.learnt.restore_(model, masks)
        for name, mask in masks.items():
            layer = model.get_submodule(name)
            layer.get_buffer("weight_mask").copy_(mask)
            apply_mask_(layer)
        self.current = sparsity

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        self.reached.append(self.current)

    def state(self) -> dict[str, Any]:
        learnt = self.learnt.state() if self.learnt is not None else {}
        return {"start": self.start, "current": self.current, "reached": list(self.reached),
                "learnt": learnt}  # fmt: skip

    def resume(self, state: dict[str, Any]) -> None:
        self.start, self.current = state["start"], state["current"]
        self.reached = state["reached"]
        if self.learnt is not None:
            self.learnt.resume(state["learnt"])


def _weight(layer: nn.Module) -> Tensor:
    return layer.get_parameter("weight").detach()


def _share_zero(model: nn.Module, names: Sequence[str]) -> float:
    owners = set(weight_owners(model, names).values())
    unique = [_weight(model.get_submodule(name)) for name in owners]
    return sum(int((w == 0).sum()) for w in unique) / sum(w.numel() for w in unique)
