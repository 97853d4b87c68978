"""Training against a teacher: its answers, its features, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressbench.checks import check_share
from compressbench.core import TRAINED, Artifact, Context, DataSpec, Outcome, UserError
from compressbench.methods import FeatureLoss
from compressbench.stages.features import Shape, pair, shapes, watched
from compressbench.stages.schedule import BatchLoss, Schedule
from compressbench.stages.scheme import example
from compressbench.stages.train import cross_entropy, touched

Teaching = Any  # a DistillationLoss, a FeatureLoss, or a sum of them by name (`terms`)


class Compared(NamedTuple):
    """One pair of layers that a term compares; `connector` makes the student's fit, or is None."""

    term: str
    student: str
    teacher: str
    connector: nn.Module | None


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


def check_teacher(loss: Teaching, student: nn.Module, teacher: nn.Module, spec: DataSpec) -> None:
    """Refuse before anything is trained layers that cannot be compared."""
    if any(isinstance(term, FeatureLoss) for term in terms_of(loss).values()):
        inputs = example(spec)
        with torch.random.fork_rng(devices=[]):
            compare(loss, shapes(student, inputs), shapes(teacher, inputs))


class Lesson(nn.Module):
    """The loss of `fit_` against frozen teachers that see the same augmented batch.

    Of several teachers the logits are averaged. Parameters of this module are those of the
    connectors between features; `terms` holds the parts of the last loss.
    """

    def __init__(
        self, student: nn.Module, teachers: Sequence[nn.Module], loss: Teaching, example: Tensor
    ) -> None:
        super().__init__()
        self.losses = terms_of(loss)
        self._teachers = tuple(teachers)  # no submodules: they are neither trained nor saved
        self.compared: list[Compared] = []
        if any(isinstance(term, FeatureLoss) for term in self.losses.values()):
            if len(teachers) > 1:
                raise UserError("features of several teachers cannot be averaged: name one")
            found = shapes(student, example), shapes(teachers[0], example)
            self.compared = compare(loss, *found)
        self.connectors = nn.ModuleList(c.connector for c in self.compared if c.connector)
        self.terms: dict[str, Tensor] = {}
        self._seen: dict[str, Tensor] = {}

    @contextmanager
    def attached(self, student: nn.Module) -> Iterator[None]:
        """Look at the features of `student` and of the teacher."""
        ours = {f"s{i}": c.student for i, c in enumerate(self.compared)}
        theirs = {f"t{i}": c.teacher for i, c in enumerate(self.compared)}
        with ExitStack() as stack:
            stack.enter_context(watched(student, ours, self._seen.__setitem__))
            stack.enter_context(watched(self._teachers[0], theirs, self._seen.__setitem__))
            yield

    def forward(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        self._seen.clear()
        with torch.no_grad():
            answers = torch.stack([teacher(inputs) for teacher in self._teachers]).mean(0)
        logits = model(inputs)
        self.terms = self._terms(logits, answers, targets)
        self._seen.clear()
        return torch.stack(list(self.terms.values())).sum(), logits

    def _terms(self, logits: Tensor, answers: Tensor, targets: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            if not isinstance(loss, FeatureLoss):
                found[name] = loss(logits, answers, targets)
        if not found:
            found["labels"] = F.cross_entropy(logits, targets)
        for number, compared in enumerate(self.compared):
            loss = self.losses[compared.term]
            ours = self._seen[f"s{number}"]
            ours = ours if compared.connector is None else compared.connector(ours)
            value = loss.weight * loss(ours, self._seen[f"t{number}"])
            found[compared.term] = found.get(compared.term, 0.0) + value
        return found


@contextmanager
def lesson(
    student: nn.Module, inputs: Mapping[str, Artifact], loss: Teaching, context: Context
) -> Iterator[Lesson]:
    """What `fit_` trains `student` on, which learns from the teachers among `inputs`."""
    device = context.runtime.device
    found = [inputs[role] for role in sorted(inputs) if role.startswith("teacher")]
    if not found:
        raise UserError("a distillation loss needs a teacher: the name of an earlier stage")
    teachers = [deepcopy(a.model).eval().requires_grad_(False) for a in found]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(context.seed)  # of the connectors
        made = Lesson(student, teachers, loss, example(context.data.spec))
    for teacher in teachers:
        teacher.to(device)
    with made.attached(student):
        yield made


def loss_for(
    student: nn.Module,
    inputs: Mapping[str, Artifact],
    loss: Teaching,
    label_smoothing: float,
    context: Context,
) -> AbstractContextManager[BatchLoss]:
    """What `fit_` trains `student` on: the labels where `loss` is None, else its teachers."""
    if loss is None:
        return nullcontext(cross_entropy(label_smoothing))
    return lesson(student, inputs, loss, context)


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
    from compressbench.stages.fit import fit_  # Lightning takes seconds to import

    model = deepcopy(start.model)
    with loss_for(model, inputs, loss, label_smoothing, context) as made:
        history = fit_(model, penalty(made) if penalty else made, schedule, context)
    trained = replace(start, model=model, properties=start.properties | {TRAINED})
    return Outcome(trained, touched(model, "trained"), history)
