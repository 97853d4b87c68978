"""The config of a model: class options, checkpoint, student; and whether it fits the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compressbench.config.instantiate import instantiate, takes_option
from compressbench.core.errors import UserError
from compressbench.core.types import Data, DataSpec
from compressbench.models.checkpoint import load_checkpoint_

STUDENT = "student"  # in a model: options that its student overrides; in a stage: that student
_NOT_OPTIONS = ("checkpoint", STUDENT)


def options_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are passed to the model's class."""
    return {k: v for k, v in model.items() if k not in _NOT_OPTIONS}


def student_of(model: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """The run's model, from initial weights, with the options that its `student` has others; or
    what `student` is, where that is a whole model.
    """
    changes = model.get(STUDENT)
    where = f"recipe.stages.{stage}.model={STUDENT}"
    if not isinstance(changes, Mapping) or not changes:
        raise UserError(
            f"{where}: model.{STUDENT} must list the options to override, such as "
            f"{{width: 8}}, got {changes!r}; or choose a model of the group, "
            f"model@recipe.stages.{stage}.model=NAME"
        )
    return changes if "_target_" in changes else {**options_of(model), **changes}


def check_domain(own: Mapping[str, Any], spec: DataSpec, where: str) -> None:
    """Raise UserError for an image model on text data, or a text model on images."""
    takes = takes_option(own, "vocabulary", where)
    if takes is None or takes == (spec.tokens is not None):
        return
    name = str(own["_target_"]).rpartition(".")[2]
    if takes:
        raise UserError(f"{where}: {name} takes texts, but dataset {spec.name} has images")
    raise UserError(
        f"{where}: {name} takes images, but dataset {spec.name} has texts: choose text_transformer,"
        " or a class of your own that takes vocabulary and pad, too"
    )


def checked_architecture(
    own: Mapping[str, Any], data: Data, where: str
) -> tuple[dict[str, Any], Path | None, torch.nn.Module]:
    """The config that builds a model for `data`, its checkpoint, and the model, built and tried.

    `where` is its place in the config, for messages. Raises UserError for what does not fit.
    """
    if not isinstance(own, Mapping):
        raise UserError(
            f"{where}={own} is not a model: choose one of the group, model@{where}={own}"
        )
    spec = data.spec
    check_domain(own, spec, where)
    config = {
        "input_shape": list(spec.input_shape),
        "num_classes": spec.num_classes,
        **({"vocabulary": spec.tokens.vocabulary, "pad": spec.tokens.pad} if spec.tokens else {}),
        **options_of(own),
    }
    if config["num_classes"] != spec.num_classes:
        raise UserError(
            f"{where}.num_classes={config['num_classes']}, but dataset {spec.name} has "
            f"{spec.num_classes} classes: teacher, student and dataset must agree"
        )
    path = None if own.get("checkpoint") is None else Path(str(own["checkpoint"])).expanduser()
    if path is not None and not path.is_file():
        raise UserError(f"{where}.checkpoint={path}: no such file")
    return config, path, _try_model(config, path, spec, where)


def _try_model(
    config: Mapping[str, Any], checkpoint: Path | None, spec: DataSpec, where: str
) -> torch.nn.Module:
    """Build a model and run it on two blank samples, so that errors show before any training."""
    with torch.random.fork_rng(devices=()):
        model = instantiate(config, where)
    if not isinstance(model, torch.nn.Module):
        raise UserError(f"{where}._target_={config['_target_']} is not a torch.nn.Module")
    if checkpoint is not None:
        load_checkpoint_(model, checkpoint)
    inputs = spec.blank(2)
    try:
        with torch.no_grad():
            logits = model.eval()(inputs)
    except (RuntimeError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise UserError(f"{where} fails on inputs {list(inputs.shape)}: {first}") from error
    if tuple(getattr(logits, "shape", ())) != (2, spec.num_classes):
        raise UserError(
            f"{where} maps {list(inputs.shape)} to {list(getattr(logits, 'shape', ()))}, but "
            f"dataset {spec.name} has {spec.num_classes} classes: [2, {spec.num_classes}] expected"
        )
    return model
