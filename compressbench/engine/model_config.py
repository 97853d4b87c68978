"""The config of a model: options of its class, a checkpoint, a student; does it fit the data?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressbench.config.instantiate import takes_option
from compressbench.core.errors import UserError
from compressbench.core.types import DataSpec

STUDENT = "student"  # of a model: which of its options a student has others; of a stage: that model
_NOT_OPTIONS = ("checkpoint", STUDENT)


def options_of(model: Mapping[str, Any]) -> dict[str, Any]:
    """What the class of a model is called with."""
    return {k: v for k, v in model.items() if k not in _NOT_OPTIONS}


def student_of(model: Mapping[str, Any], stage: str) -> Mapping[str, Any]:
    """The run's model, from initial weights, with the options that its `student` has others; or
    what `student` is, where that is a whole model.
    """
    changes = model.get(STUDENT)
    where = f"recipe.stages.{stage}.model={STUDENT}"
    if not isinstance(changes, Mapping) or not changes:
        raise UserError(
            f"{where}: model.{STUDENT} must say which options of the model are others, such as "
            f"{{width: 8}}, got {changes!r}; or choose a model of the group, "
            f"model@recipe.stages.{stage}.model=NAME"
        )
    return changes if "_target_" in changes else {**options_of(model), **changes}


def check_domain(own: Mapping[str, Any], spec: DataSpec, where: str) -> None:
    """UserError for a model of images where the data are texts, and the other way round."""
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
