"""Training against a teacher: its answers, its features, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.core.distributed import world_size
from compressbench.core.errors import UserError
from compressbench.core.memory_format import channels_last
from compressbench.core.protocols import FeatureLoss
from compressbench.core.types import TRAINED, Artifact, Context, DataSpec, Outcome
from compressbench.core.validation import check_share
from compressbench.training.fits.schedule import BatchLoss, Schedule
from compressbench.training.teaching.features import Shape, capture_outputs, pair, shapes
from compressbench.training.teaching.teachers import ANSWERS, Teachers, dtype_for, teacher_outputs
from compressbench.training.train import cross_entropy, touched

Teaching = Any  # a DistillationLoss, a FeatureLoss, or a sum of them by name (`terms`)


class Compared(NamedTuple):
    """One pair of layers that a term compares; `connector` makes them fit, or is None."""

    term: str
    student: str
    teacher: str
    connector: nn.Module | None

    def connected(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Features of both as the loss takes them."""
        if self.connector is None:
            return student, teacher
        of_teacher = getattr(self.connector, "of_teacher", None)
        return self.connector(student), teacher if of_teacher is None else of_teacher(teacher)


def check_loss(loss: Any) -> None:
    """Raise UserError unless `loss` is a distillation loss or a sum of them."""
    if not all(callable(term) for term in terms_of(loss).values()):
        raise UserError(f"loss must be a distillation loss, got {loss!r}")


def check_choice(loss: Any, label_smoothing: Any) -> None:
    """Raise UserError unless at most one of a distillation loss and label smoothing is set."""
    check_share("label_smoothing", label_smoothing)
    if loss is None:
        return
    check_loss(loss)
    if label_smoothing:
        raise UserError(f"label_smoothing={label_smoothing} has no meaning with a loss: set one")


def terms_of(loss: Teaching) -> dict[str, Any]:
    """The losses of a sum by name; a single one has the name of its class, in lower case."""
    terms = getattr(loss, "terms", None)
    if isinstance(terms, Mapping):
        return dict(terms)
    return {type(loss).__name__.lower(): loss}


def compare(
    loss: Teaching, student: Mapping[str, Shape], teacher: Mapping[str, Shape]
) -> list[Compared]:
    """The layers that the terms of `loss` compare; UserError where two cannot be compared."""
    found = []
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
            found.append(Compared(name, ours, theirs, connector))
    return found


def check_teachers(
    loss: Teaching, student: nn.Module, teachers: Sequence[nn.Module], spec: DataSpec
) -> None:
    """Refuse before anything is trained layers that cannot be compared."""
    with torch.random.fork_rng(devices=[]):
        compared_layers(loss, student, teachers, spec)


def compared_layers(
    loss: Teaching, student: nn.Module, teachers: Sequence[nn.Module], spec: DataSpec
) -> list[Compared]:
    """`compare` of two models; connectors draw their weights from torch's generator."""
    if not any(isinstance(term, FeatureLoss) for term in terms_of(loss).values()):
        return []
    if len(teachers) > 1:
        raise UserError("features of several teachers cannot be averaged: name one teacher")
    inputs = spec.blank(2)
    return compare(loss, shapes(student, inputs), shapes(teachers[0], inputs))


class DistillationObjective(nn.Module):
    """The loss of `fit_` against what teachers give for the same images as the student sees.

    Parameters of this module are those of the connectors between features; `terms` holds the parts
    of the last loss, `teacher_outputs` gives what teachers say to (inputs, rows).
    """

    def __init__(self, loss: Teaching, compared: Sequence[Compared]) -> None:
        super().__init__()
        self.losses = terms_of(loss)
        self.compared = list(compared)
        self.connectors = nn.ModuleList(c.connector for c in self.compared if c.connector)
        self.teacher_outputs: Callable[[Tensor, Tensor], dict[str, Tensor]]
        self.notes: tuple[str, ...] = ()
        self.terms: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}

    @contextmanager
    def attached(self, student: nn.Module) -> Iterator[None]:
        """Look at the features of `student`."""
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
        found: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            if not isinstance(loss, FeatureLoss):
                found[name] = loss(logits, taught[ANSWERS], targets)
        if not found:
            found["labels"] = F.cross_entropy(logits.flatten(0, -2), targets.flatten())
        for number, compared in enumerate(self.compared):
            loss = self.losses[compared.term]
            pair = compared.connected(self._seen[f"s{number}"], taught[f"t{number}"])
            labels = (targets,) if getattr(loss, "sees_labels", False) else ()
            value = loss.weight * loss(*pair, *labels)
            found[compared.term] = found.get(compared.term, 0.0) + value
        return found


@contextmanager
def lesson(
    student: nn.Module,
    inputs: Mapping[str, Artifact],
    loss: Teaching,
    schedule: Schedule,
    context: Context,
) -> Iterator[DistillationObjective]:
    """What `fit_` trains `student` on, which learns from the teachers among `inputs`."""
    device = context.runtime.device
    found = [inputs[role] for role in sorted(inputs) if role.startswith("teacher")]
    if not found:
        raise UserError("a distillation loss needs a teacher: the name of an earlier stage")
    models = [deepcopy(a.model) for a in found]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)  # of the connectors
        made = DistillationObjective(
            loss, compared_layers(loss, student, models, context.data.spec)
        )
    layers = {f"t{i}": c.teacher for i, c in enumerate(made.compared)}
    dtype = dtype_for(device, chain.from_iterable(a.properties for a in found))
    teachers = Teachers([model.to(device) for model in models], layers, dtype)
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(channels_last(model, context.data.spec.blank(2), device))
        made.teacher_outputs, note = teacher_outputs(teachers, _looks(schedule, context), context)
        made.notes = (note,)
        stack.enter_context(made.attached(student))
        yield made


def _looks(schedule: Schedule, context: Context) -> int:
    """At how many training images a fit looks, with repetitions."""
    ranks, images = world_size(), len(context.data.split("train"))
    _, steps = schedule.steps(images, ranks, context.runtime.max_batches)
    return steps * schedule.share(ranks) * ranks


def loss_for(
    student: nn.Module,
    inputs: Mapping[str, Artifact],
    loss: Teaching,
    label_smoothing: float,
    schedule: Schedule,
    context: Context,
) -> AbstractContextManager[BatchLoss]:
    """What `fit_` trains `student` on: the labels where `loss` is None, else its teachers."""
    if loss is None:
        return nullcontext(cross_entropy(label_smoothing))
    return lesson(student, inputs, loss, schedule, context)


def learn(
    start: Artifact,
    inputs: Mapping[str, Artifact],
    loss: Teaching,
    label_smoothing: float,
    schedule: Schedule,
    context: Context,
    penalty: Callable[[BatchLoss], BatchLoss] | None = None,
) -> Outcome:
    """Fit a copy of the model of `start` to the labels, or to what the teachers among `inputs`
    give; `penalty` adds to the loss.
    """
    from compressbench.training.fits.fit import fit_  # Lightning takes seconds to import

    model = deepcopy(start.model)
    with loss_for(model, inputs, loss, label_smoothing, schedule, context) as made:
        history = fit_(model, penalty(made) if penalty else made, schedule, context)
        notes = notes_of(made)
    trained = replace(start, model=model, properties=start.properties | {TRAINED})
    return Outcome(trained, touched(model, "trained"), history, notes=notes)


def notes_of(loss: BatchLoss) -> tuple[str, ...]:
    """How the teachers of a `loss_for` were asked; nothing where there are none."""
    return getattr(loss, "notes", ())
