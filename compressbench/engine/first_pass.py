"""Builds a model and runs it on two samples, so that errors show before any training."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from compressbench.core.errors import UserError
from compressbench.core.parametrizations import plain_copy
from compressbench.core.types import DataSpec
from compressbench.engine.module_form import check_copy, registered
from compressbench.engine.stage_job import build_model
from compressbench.models.checkpoint import load_checkpoint_
from compressbench.models.lazy import initialised_config
from compressbench.tasks.choice import task_of

WRAP = "wrap the model in a module whose forward returns the logits alone"


def tried_model(
    config: dict[str, Any],
    checkpoint: Path | None,
    spec: DataSpec,
    where: str,
    offered: Collection[str] = (),
) -> tuple[dict[str, Any], nn.Module]:
    """The config that builds a model, and the model in eval mode, with plain weights, after one
    pass over two blank samples.

    The config is `config`, unless the model has lazy layers, or hands on options to something that
    refuses some of those `offered`. `where` is its place in the run's
    config, for messages. Raises UserError for a model that cannot be built or run, or that does not
    fit the data.
    """
    with torch.random.fork_rng(devices=()):
        config, model = built_model(config, where, offered)
        _check_inputs(model, where)
        if any(map(is_lazy, [*model.parameters(), *model.buffers()])):
            config = initialised_config(config, spec)
            model = build_model(config, where)
    _check_parameters(model, where)
    check_copy(model, where)
    if checkpoint is not None:
        load_checkpoint_(model, checkpoint)
    inputs = spec.blank(2)
    with torch.no_grad(), registered(model, where):
        logits = answer(model, inputs, where)
    check_logits(logits, inputs, spec, where)
    return config, plain_copy(model)


def built_model(
    config: dict[str, Any], where: str, offered: Collection[str]
) -> tuple[dict[str, Any], nn.Module]:
    """The model, and its config without those `offered` options that a call inside refuses."""
    try:
        return config, build_model(config, where)
    except UserError:
        raise
    except Exception as error:  # the class is the user's: it may raise anything
        for name in offered:
            if isinstance(error, TypeError) and f"keyword argument '{name}'" in str(error):
                fewer = {option: value for option, value in config.items() if option != name}
                return built_model(fewer, where, [n for n in offered if n != name])
        raise UserError(f"{where} cannot be built: {reason(error)}") from error


def answer(model: nn.Module, inputs: Tensor, where: str, when: str = "") -> Any:
    """What a model returns; UserError with the place in the user's code where it fails. `when` is
    for the message.
    """
    try:
        return model(inputs)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # the model is the user's: it may raise anything
        shape = list(inputs.shape)
        raise UserError(f"{where} fails on inputs {shape}{when}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """The first line of an error, its type where the text alone says little, and its place in the
    user's code.
    """
    from compressbench.export import place  # imports onnx_ir

    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    name = type(error).__name__
    plain = first and isinstance(error, (RuntimeError, ValueError))
    return (first if plain else f"{name}: {first}".rstrip(": ")) + place.of_error(error)


def check_logits(logits: Any, inputs: Tensor, spec: DataSpec, where: str, when: str = "") -> None:
    """Raise UserError unless `logits` are one float32 tensor of the shape that the data need."""
    task = task_of(spec)
    wanted = (len(inputs), *(task.shape(spec) or _as_it_is(logits)))
    if not isinstance(logits, Tensor):
        raise UserError(
            f"{where} gives {described(logits)}{when}, but one tensor {list(wanted)} is needed: "
            f"{WRAP}"
        )
    if tuple(logits.shape) != wanted:
        raise UserError(
            f"{where} maps {list(inputs.shape)} to {list(logits.shape)}{when}, but dataset "
            f"{spec.name} has {_outputs(spec)}: {list(wanted)} expected"
        )
    if logits.dtype != torch.float32:
        raise UserError(
            f"{where} gives logits of {_name(logits.dtype)}{when}: they must be float32; a buffer "
            "or constant of another type in the model makes them so"
        )


def _as_it_is(answers: Any) -> tuple[int, ...]:
    """The shape of one answer where the task leaves it to the model."""
    return tuple(answers.shape[1:]) if isinstance(answers, Tensor) else ()


def _outputs(spec: DataSpec) -> str:
    task = task_of(spec)
    if task.distribution == "classes":
        return f"{task.outputs(spec)} classes"
    return f"the task {task.name}"


def described(value: Any) -> str:
    """The type of a value, with the shapes of the tensors that it holds."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        held = ", ".join(f"{name}: {described(item)}" for name, item in value.items())
        return f"a dict ({held})"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} ({', '.join(map(described, value))})"
    return "nothing" if value is None else f"an object of type {type(value).__name__}"


def _check_inputs(model: nn.Module, where: str) -> None:
    """Raise UserError for a forward that needs more inputs than one, or takes none."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # written in C
        return
    of_place = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in _COLLECT]
    if len(needed) > 1:
        raise UserError(
            f"{where}: the forward of {type(model).__name__} takes {len(needed)} inputs "
            f"({', '.join(needed)}), but models have one input: wrap it in a module whose forward "
            "takes one tensor and makes the others"
        )
    if not of_place and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise UserError(f"{where}: the forward of {type(model).__name__} takes no input")


_COLLECT = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _check_parameters(model: nn.Module, where: str) -> None:
    """Raise UserError for parameters that are not float32."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise UserError(
                f"{where}: {name} is {_name(parameter.dtype)}, but parameters must be float32: "
                "call .float() on the model where it is made"
            )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
