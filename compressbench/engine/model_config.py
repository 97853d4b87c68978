"""The config of a model: class options, checkpoint, student; and whether it fits the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from compressbench.core.errors import UserError
from compressbench.core.input_files import input_file
from compressbench.core.types import Data, DataSpec
from compressbench.core.validation import check_path, shown
from compressbench.engine.data_options import takes_texts, with_data_options
from compressbench.engine.first_pass import built_model, tried_model
from compressbench.engine.stage_job import build_model
from compressbench.models.pretrained import TARGET as PRETRAINED
from compressbench.models.pretrained import weights_digest

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
    takes = takes_texts(own, where)
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
            f"{where}={shown(own)} is not a model: choose one of the group, model@{where}=NAME"
        )
    spec = data.spec
    check_domain(own, spec, where)
    config = with_data_options(options_of(own), spec, where)
    _check_student(own, spec, where)
    path = _checkpoint_of(own, where)
    offered = [name for name in config if name not in own]
    config, model = tried_model(config, path, spec, where, offered)
    if config["_target_"] == PRETRAINED and config.get("trained", True):
        config |= {"trained": True, "state_sha256": weights_digest(build_model(config, where))}
    return config, path, model


def _check_student(own: Mapping[str, Any], spec: DataSpec, where: str) -> None:
    """Refuse a `student` that could not be built, also where no stage of the recipe builds it."""
    changes = own.get(STUDENT)
    if changes is None:
        return
    place = f"{where}.{STUDENT}"
    if not isinstance(changes, Mapping):
        raise UserError(f"{place} must be a section of options, got {shown(changes)}")
    options = changes if "_target_" in changes else {**options_of(own), **changes}
    if changes:
        with torch.random.fork_rng(devices=()):
            built_model(with_data_options(options_of(options), spec, place), place, ())


def _checkpoint_of(own: Mapping[str, Any], where: str) -> Path | None:
    given, place = own.get("checkpoint"), f"{where}.checkpoint"
    check_path(place, given)
    return None if given is None else input_file(given, place)
