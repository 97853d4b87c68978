"""Tries the models of a plan before any training: a step in training mode, a trial export.

What goes well is stored, so that a model is tried once; a failure is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from compressbench.config.instantiate import own_targets
from compressbench.core.errors import UserError
from compressbench.core.parametrizations import with_plain_weights
from compressbench.core.types import Artifact, DataSpec
from compressbench.engine.context import EXPORT_LIBRARIES, RunContext, parts_of, tracer
from compressbench.engine.first_pass import WRAP, answer, check_logits, described, reason
from compressbench.engine.plan import Planned
from compressbench.engine.stage_job import build_model
from compressbench.store.keys import content_key
from compressbench.store.sources import versions
from compressbench.tasks.choice import task_of

SAMPLES = 4  # BatchNorm needs more than one value per channel in training
_MANY_SAMPLES = 10**6
_TOLERANCE = 1e-4  # relative, between two passes over one input


def try_models(plan: Sequence[Planned], run_context: RunContext) -> None:
    """Raise UserError for a model that cannot be trained or exported, before anything is.

    Models whose stages the store has are left out: they were.
    """
    for planned, trains in _new_starts(plan, run_context):
        parts = _parts(planned, trains, run_context)
        if run_context.store.peek(content_key(parts)) is None:
            run_context.progress(0, 1, f"trying {planned.model_place}: a training step, an export")
            _try_passes(planned, trains, run_context)
            _try_export(planned, run_context)
            run_context.store.get_or_build(parts, lambda folder: {})


def try_passes(plan: Sequence[Planned], run_context: RunContext) -> None:
    """The part of `try_models` that takes no time and writes nothing, for a plan."""
    for planned, trains in _new_starts(plan, run_context):
        _try_passes(planned, trains, run_context)


def _new_starts(plan: Sequence[Planned], run_context: RunContext) -> Iterator[tuple[Planned, bool]]:
    """The stages that start from a fresh model, and whether a stage of its chain trains it; not
    those of a chain that the store has.
    """
    for chain in _chains(plan):
        if any(run_context.store.peek(planned.key) is None for planned in chain):
            yield chain[0], any(map(_trains, chain))


def _chains(plan: Sequence[Planned]) -> list[list[Planned]]:
    """The stages of each fresh model, in order."""
    chains: dict[str, list[Planned]] = {}
    for planned in plan:
        parent = planned.parents.get("model")
        chains[planned.name] = [] if parent is None else chains[parent]
        chains[planned.name].append(planned)
    return [chains[planned.name] for planned in plan if "model" not in planned.parents]


def _trains(planned: Planned) -> bool:
    model = planned.job.model
    taken = planned.job.checkpoint is not None or (model is not None and model.get("trained"))
    return not taken and planned.stage.passes(_MANY_SAMPLES)[0] > 0


def _parts(planned: Planned, trains: bool, run_context: RunContext) -> dict[str, Any]:
    """The parts of the key under which a success is stored."""
    shared = {
        "model": planned.job.model,
        "trains": trains,
        "data": run_context.data_identity,
        "opset": run_context.opset,
        "environment": versions(EXPORT_LIBRARIES),
    }
    return parts_of("trial", shared, f"{__name__}.try_models", *own_targets(planned.job.model))


def _try_passes(planned: Planned, trains: bool, run_context: RunContext) -> None:
    where, data = planned.model_place, run_context.data
    split = data.split("train")
    inputs = data.prepare(split.inputs[:SAMPLES].clone())
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        _try_eval(planned.begins_with, inputs, where)
        if trains:
            model = build_model(planned.job.model or {}, where)
            _try_training(model, inputs, split.targets[:SAMPLES], data.spec, where)


def _try_eval(model: nn.Module, inputs: Tensor, where: str) -> None:
    """Raise UserError where two passes in eval mode differ, or an answer is not finite."""
    with torch.no_grad():
        logits, again = (answer(model, inputs.clone(), where) for _ in range(2))
        _try_copy(model, inputs.clone(), where)
    if not bool(torch.isfinite(logits).all()):
        raise UserError(f"{where} gives NaN or infinity on {len(inputs)} training samples")
    scale = logits.abs().max().item()
    if (logits - again).abs().max().item() > _TOLERANCE * scale:
        raise UserError(
            f"{where} gives two answers to one input in eval mode: a model that is not in training "
            "must neither draw random numbers (ask self.training) nor change itself"
        )


def _try_copy(model: nn.Module, inputs: Tensor, where: str) -> None:
    """Raise UserError if a copy of the model calls layers of the original."""
    originals = {id(module): name for name, module in model.named_modules()}
    called: list[str] = []

    def note(module: nn.Module, inputs: object) -> None:
        if id(module) in originals:
            called.append(originals[id(module)])

    copy = deepcopy(model)
    handle = register_module_forward_pre_hook(note)
    try:
        answer(copy, inputs, where)
    finally:
        handle.remove()
    if called:
        raise UserError(
            f"{where} cannot be copied: an attribute of it is a function that calls its own layer "
            f"{called[0]}, such as a lambda; make that function a method"
        )


def _try_training(
    model: nn.Module, inputs: Tensor, targets: Tensor, spec: DataSpec, where: str
) -> None:
    """Raise UserError unless a step of training finds gradients; `model` is changed."""
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(
            f"{where} cannot be trained: none of its parameters has requires_grad; a model that "
            f"needs no training comes from a file, {where}.checkpoint=FILE"
        )
    when = " in training mode"
    logits = answer(model.train(), inputs, where, when)
    if not isinstance(logits, Tensor):
        raise UserError(
            f"{where} gives {described(logits)}{when}, but one tensor in eval mode: {WRAP} in both"
        )
    check_logits(logits, inputs, spec, where, when)
    loss = task_of(spec).loss(logits, targets)
    if not loss.requires_grad:
        raise UserError(
            f"{where} cannot be trained: its logits have no gradient; look for detach(), .data or "
            "torch.no_grad() in its forward"
        )
    try:
        torch.autograd.backward(loss)
    except Exception as error:  # from a function of the user's own
        raise UserError(f"{where} fails in the backward pass: {reason(error)}") from error


def _try_export(planned: Planned, run_context: RunContext) -> None:
    """Raise UserError for a model that cannot be exported; its graph stays for the export of what
    is trained.
    """
    from compressbench.export.trial import try_export

    config, where, opset = planned.job.model or {}, planned.model_place, run_context.opset
    with torch.random.fork_rng(devices=()):
        model = build_model(config, where)
    artifact = with_plain_weights(Artifact(model, config, (), frozenset()))
    trace = tracer(artifact, run_context)
    try:
        try:
            try_export(artifact.model, run_context.data.spec, opset, trace)
        except UserError:  # once more, with the places of nodes
            try_export(artifact.model, run_context.data.spec, opset)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
