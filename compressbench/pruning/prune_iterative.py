"""Iterative pruning: prunes and trains in rounds, optionally rewinding the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import nn

from compressbench.core.distributed import rank
from compressbench.core.edits import apply_mask_, masked_layers, set_mask_
from compressbench.core.errors import UserError
from compressbench.core.layers import prunable_layers
from compressbench.core.protocols import Criterion, ModelCriterion
from compressbench.core.types import (
    CHANNEL_PRUNED,
    MASKED,
    QUANTIZED,
    TRAINED,
    Artifact,
    Context,
    DataSpec,
    Edit,
    Outcome,
    Stage,
)
from compressbench.core.validation import check_flag, check_integer
from compressbench.pruning.prune import Prune, PruneOptions, prune_once
from compressbench.pruning.weights.apply import nonzero_weights, zeroed
from compressbench.training.batchnorm import BatchNormOptions
from compressbench.training.fits.checkpoints import load_checkpoint, save_checkpoint
from compressbench.training.fits.schedule import schedule_of
from compressbench.training.teaching import objective
from compressbench.training.train import Train

ROUNDS = "rounds.ckpt"
FIELDS = {"round", "model", "history", "edits"}
NO_EARLY = "rewind needs weights of an early epoch: set keep_epoch of an earlier train stage"


@dataclass(frozen=True)
class PruneIteratively(objective.TaughtFitOptions, PruneOptions, BatchNormOptions):
    """Prune the least important weights, then train for `epochs`; repeat this `rounds` times.

    After round r of R the sparsity is 1 - (1 - sparsity)^(r / R): every round prunes the same
    share of the remaining weights (Han et al. 2015, arXiv:1506.02626). With `rewind`, the
    remaining weights are reset before each training to those of the epoch that the train stage
    kept (`keep_epoch`): lottery tickets (Frankle and Carbin 2019, arXiv:1803.03635, for epoch 0;
    Frankle et al. 2020, arXiv:1912.05671, for a later epoch). `scope`, `normalize`, `pattern`
    (blocks only), `layers`, `skip`, `batchnorm` and `batchnorm_images` are those of `Prune`; all
    other options are those of `PruneGradually`.

    Each finished round is saved in the stage's folder, so an interrupted run resumes there.
    """

    needs: ClassVar[frozenset[str]] = frozenset({TRAINED})
    adds: ClassVar[frozenset[str]] = frozenset({MASKED})
    destroys: ClassVar[frozenset[str]] = QUANTIZED

    criterion: Criterion | ModelCriterion
    sparsity: float
    rounds: int = 3
    rewind: bool = False

    def __post_init__(self) -> None:
        objective.check_fit(self)
        self.prune(self.sparsity)
        check_integer("rounds", self.rounds, 1)
        check_flag("rewind", self.rewind)

    def prune(self, sparsity: float) -> Prune:
        """The pruning of one round, to `sparsity`."""
        once = prune_once(self, self.criterion, sparsity)
        return replace(once, batchnorm=self.batchnorm, batchnorm_images=self.batchnorm_images)

    def sparsity_after(self, done: int) -> float:
        """The sparsity after `done` rounds."""
        return float(1.0 - (1.0 - self.sparsity) ** (done / self.rounds))

    def check_line(self, earlier: Sequence[Stage]) -> None:
        """Reject rewinding if no usable early weights exist, before the recipe runs."""
        if not self.rewind:
            return
        kept = any(isinstance(s, Train) and s.keep_epoch is not None for s in earlier)
        if not kept or any(CHANNEL_PRUNED in stage.adds for stage in earlier):
            raise UserError(NO_EARLY)

    def check_model(self, model: nn.Module, spec: DataSpec) -> None:
        """Reject names that match no layer and patterns that do not fit, before the recipe runs."""
        self.prune(self.sparsity).left(model)

    check_teachers = objective.check_teachers

    def passes(self, train_images: int) -> tuple[int, int]:
        trained = round(self.epochs * train_images) * self.rounds
        backward, forward = self.prune(self.sparsity).passes(train_images)
        return trained + self.rounds * backward, self.rounds * forward

    def run(self, inputs: Mapping[str, Artifact], context: Context) -> Outcome:
        start = inputs["model"]
        if self.rewind and not start.early:
            raise UserError(NO_EARLY)
        context.folder.mkdir(parents=True, exist_ok=True)
        notes: tuple[str, ...] = ()
        current, first, history = _resume(start, context.folder / ROUNDS)
        for done in range(first, self.rounds):
            place = replace(context, folder=context.folder / f"round{done}")
            stage = self.prune(self.sparsity_after(done + 1))
            pruned = stage.run({"model": current}, place).artifact
            if self.rewind:
                pruned = replace(pruned, model=_rewound(pruned))
            outcome = objective.learn(
                pruned, inputs, self.loss, self.label_smoothing, schedule_of(self), place
            )
            current, notes = outcome.artifact, outcome.notes
            for name, values in outcome.history.items():
                history[name] = [*history.get(name, []), *values]
            if rank() == 0:
                _save(current, done + 1, history, context.folder / ROUNDS)
        left = self.prune(self.sparsity).left(current.model)
        layers = {n: m for n, m in prunable_layers(start.model).items() if n not in left}
        rows = zeroed(current.model, nonzero_weights(layers), left)
        return Outcome(current, rows, history, notes=notes)


def _rewound(artifact: Artifact) -> nn.Module:
    """A copy of the model with its early weights, masks applied."""
    model = deepcopy(artifact.model)
    model.load_state_dict(dict(artifact.early), strict=False)
    for layer in masked_layers(model).values():
        apply_mask_(layer)
    return model


def _save(current: Artifact, done: int, history: Mapping[str, list[float]], path: Path) -> None:
    state = {"round": done, "model": current.model.state_dict(), "history": dict(history)}
    save_checkpoint({**state, "edits": list(current.edits)}, path)


def _resume(start: Artifact, path: Path) -> tuple[Artifact, int, dict[str, list[float]]]:
    """The state that an interrupted run saved: artifact, finished rounds, history."""
    state = load_checkpoint(path, FIELDS)
    if state is None:
        return start, 0, {}
    model = deepcopy(start.model)
    edits: list[Edit] = state["edits"]
    for edit in edits[len(start.edits) :]:
        for name in edit["layers"]:
            set_mask_(model.get_submodule(name))
    model.load_state_dict(state["model"])
    current = start.changed(model, edits[len(start.edits) :], {MASKED})
    return current, state["round"], state["history"]
