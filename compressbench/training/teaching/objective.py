"""The training objective of a student: outputs or features of its teachers, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from compressbench.core.distributed import world_size
from compressbench.core.errors import UserError
from compressbench.core.memory_format import channels_last
from compressbench.core.protocols import FeatureLoss
from compressbench.core.task import Task
from compressbench.core.types import Artifact, Context, DataSpec, Outcome
from compressbench.core.validation import check_share
from compressbench.tasks.choice import task_of
from compressbench.training.fits.schedule import BatchLoss, FitOptions, Schedule, schedule_of
from compressbench.training.teaching.features import Shape, capture_outputs, pair, shapes
from compressbench.training.teaching.teachers import ANSWERS, Teachers, dtype_for, teacher_outputs
from compressbench.training.train import labels_loss, trained

Teaching = Any  # a DistillationLoss, a FeatureLoss, or a sum of named losses (`terms`)
History = dict[str, list[float]]


class Compared(NamedTuple):
    """A pair of layers that a term compares; `connector` (or None) makes them comparable."""

    term: str
    student: str
    teacher: str
    connector: nn.Module | None

    def connected(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """The features of student and teacher in the form that the loss takes."""
        if self.connector is None:
            return student, teacher
        of_teacher = getattr(self.connector, "of_teacher", None)
        return self.connector(student), teacher if of_teacher is None else of_teacher(teacher)


def check_loss(loss: Any) -> None:
    """Raise UserError unless `loss` is a distillation loss or a sum of them."""
    if not all(callable(term) for term in terms_of(loss).values()):
        raise UserError(f"loss must be a distillation loss, got {loss!r}")


@dataclass(frozen=True, kw_only=True)
class TaughtFitOptions(FitOptions):
    """Options of a stage that trains on the labels, or with a distillation loss.

    `label_smoothing` in [0, 1) is that of the cross-entropy with the labels. A distillation `loss`
    replaces this cross-entropy; the recipe then names the `teacher`. The options exclude each
    other.
    """

    label_smoothing: float = 0.0
    loss: Any = None


def check_fit(options: TaughtFitOptions) -> None:
    """Raise UserError for options that are out of range or exclude each other."""
    schedule_of(options)
    check_share("label_smoothing", options.label_smoothing)
    if options.loss is None:
        return
    check_loss(options.loss)
    if options.label_smoothing:
        raise UserError(
            f"label_smoothing={options.label_smoothing} has no effect with a loss: set only one"
        )


def terms_of(loss: Teaching) -> dict[str, Any]:
    """The losses of a sum by name; a single loss is named after its class, in lower case."""
    terms = getattr(loss, "terms", None)
    if isinstance(terms, Mapping):
        return dict(terms)
    return {type(loss).__name__.lower(): loss}


def compare(
    loss: Teaching, student: Mapping[str, Shape], teacher: Mapping[str, Shape]
) -> list[Compared]:
    """The layers that the terms of `loss` compare; raises UserError if they cannot be."""
    compared = []
    for name, term in terms_of(loss).items():
        if not isinstance(term, FeatureLoss):
            continue
        try:
            pairs = pair(term, student, teacher)
        except UserError as error:
            raise UserError(f"loss {name}: {error}") from None
        for ours, theirs in pairs:
            try:
                connector = term.connect(student[ours], teacher[theirs])
            except UserError as error:
                raise UserError(
                    f"loss {name}: {ours} cannot learn from {theirs}: {error}"
                ) from None
            compared.append(Compared(name, ours, theirs, connector))
    return compared


class HasLoss(Protocol):
    """A stage with a distillation loss, or None."""

    @property
    def loss(self) -> Teaching: ...


def check_teachers(
    stage: HasLoss, model: nn.Module, teachers: Sequence[nn.Module], spec: DataSpec
) -> None:
    """The method `check_teachers` of stages with a loss (see `Stage`): raise UserError, before any
    training, if features of student and teacher cannot be compared.
    """
    _check_distribution(stage.loss, task_of(spec))
    with torch.random.fork_rng(devices=[]):
        compared_layers(stage.loss, model, teachers, spec)


def _check_distribution(loss: Teaching, task: Task) -> None:
    for name, term in terms_of(loss).items():
        known = getattr(term, "distributions", None)
        if known is not None and task.distribution not in known:
            raise UserError(
                f"loss {name} compares probabilities of {' or '.join(known)}, which the answers of "
                f"{task.name} are not: use loss=logits, or a loss on features"
            )


def compared_layers(
    loss: Teaching, student: nn.Module, teachers: Sequence[nn.Module], spec: DataSpec
) -> list[Compared]:
    """`compare` for two models; connectors are initialised from torch's global generator."""
    if not any(isinstance(term, FeatureLoss) for term in terms_of(loss).values()):
        return []
    if len(teachers) > 1:
        raise UserError("features of several teachers cannot be averaged: name one teacher")
    inputs = spec.blank(2)
    return compare(loss, shapes(student, inputs), shapes(teachers[0], inputs))


class DistillationObjective(nn.Module):
    """The distillation loss as `fit_` takes it; teachers see the same images as the student.

    The parameters of this module are those of the connectors. A pair whose student layer was not
    called for a batch adds nothing to the loss of that batch. `terms` holds the parts of the last
    loss; `teacher_outputs(inputs, rows)` returns the outputs of the teachers.
    """

    def __init__(self, loss: Teaching, compared: Sequence[Compared], task: Task) -> None:
        super().__init__()
        self.task = task
        self.losses = terms_of(loss)
        self.compared = list(compared)
        self.connectors = nn.ModuleList(c.connector for c in self.compared if c.connector)
        self.teacher_outputs: Callable[[Tensor, Tensor], dict[str, Tensor]]
        self.notes: tuple[str, ...] = ()
        self.terms: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}

    @contextmanager
    def attached(self, student: nn.Module) -> Iterator[None]:
        """Record the features of `student` within the block."""
        layers = {f"s{i}": c.student for i, c in enumerate(self.compared)}
        with capture_outputs(student, layers, self._seen.__setitem__):
            yield

    def forward(
        self, model: nn.Module, inputs: Tensor, targets: Tensor, rows: Tensor
    ) -> tuple[Tensor, Tensor]:
        taught = self.teacher_outputs(inputs, rows)
        self._seen.clear()
        logits = model(inputs)
        self.terms = self._terms(logits, taught, targets)
        self._seen.clear()
        return torch.stack(list(self.terms.values())).sum(), logits

    def _terms(
        self, logits: Tensor, taught: Mapping[str, Tensor], targets: Tensor
    ) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            if not isinstance(loss, FeatureLoss):
                more = (self.task,) if getattr(loss, "sees_task", False) else ()
                terms[name] = loss(logits, taught[ANSWERS], targets, *more)
        if not terms:
            terms["labels"] = self.task.loss(logits, targets)
        for number, compared in enumerate(self.compared):
            loss = self.losses[compared.term]
            if f"s{number}" not in self._seen:  # a block that is skipped at random
                terms.setdefault(compared.term, logits.new_zeros(()))
                continue
            pair = compared.connected(self._seen[f"s{number}"], taught[f"t{number}"])
            labels = (targets,) if getattr(loss, "sees_labels", False) else ()
            value = loss.weight * loss(*pair, *labels)
            terms[compared.term] = terms.get(compared.term, 0.0) + value
        return terms


@contextmanager
def lesson(
    student: nn.Module,
    inputs: Mapping[str, Artifact],
    loss: Teaching,
    schedule: Schedule,
    context: Context,
) -> Iterator[DistillationObjective]:
    """The objective that trains `student` against the teachers among `inputs`."""
    device = context.runtime.device
    artifacts = [inputs[role] for role in sorted(inputs) if role.startswith("teacher")]
    if not artifacts:
        raise UserError("a distillation loss needs a teacher: name an earlier stage as `teacher`")
    models = [deepcopy(a.model) for a in artifacts]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)  # for the connectors
        objective = DistillationObjective(
            loss,
            compared_layers(loss, student, models, context.data.spec),
            task_of(context.data.spec),
        )
    layers = {f"t{i}": c.teacher for i, c in enumerate(objective.compared)}
    dtype = dtype_for(device, chain.from_iterable(a.properties for a in artifacts))
    teachers = Teachers([model.to(device) for model in models], layers, dtype)
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(channels_last(model, context.data.spec.blank(2), device))
        looks = _looks(schedule, context)
        objective.teacher_outputs, note = teacher_outputs(teachers, looks, context)
        objective.notes = (note,)
        stack.enter_context(objective.attached(student))
        yield objective


def _looks(schedule: Schedule, context: Context) -> int:
    """Number of training images that a fit processes, counting repetitions."""
    ranks, images = world_size(), len(context.data.split("train"))
    _, steps = schedule.steps(images, ranks, context.runtime.max_batches)
    return steps * schedule.share(ranks) * ranks


def learn_(
    student: nn.Module,
    inputs: Mapping[str, Artifact],
    loss: Teaching,
    label_smoothing: float,
    schedule: Schedule,
    context: Context,
    fit: Callable[[BatchLoss], History],
) -> tuple[History, tuple[str, ...]]:
    """Let `fit` train `student` on the labels if `loss` is None, else against the teachers among
    `inputs`. Returns the result of `fit`, and notes on how teacher outputs were computed.
    """
    if loss is None:
        return fit(labels_loss(task_of(context.data.spec), label_smoothing)), ()
    with lesson(student, inputs, loss, schedule, context) as taught:
        return fit(taught), taught.notes


def learn(
    start: Artifact,
    inputs: Mapping[str, Artifact],
    loss: Teaching,
    label_smoothing: float,
    schedule: Schedule,
    context: Context,
    penalty: Callable[[BatchLoss], BatchLoss] | None = None,
) -> Outcome:
    """Train a copy of the model of `start` as `learn_` does; `penalty` wraps the loss."""
    from compressbench.training.fits.fit import fit_  # Lightning takes seconds to import

    model = deepcopy(start.model)

    def fit(objective: BatchLoss) -> History:
        return fit_(model, penalty(objective) if penalty else objective, schedule, context)

    history, notes = learn_(model, inputs, loss, label_smoothing, schedule, context, fit)
    return replace(trained(start, model, history), notes=notes)
