"""The stages that a stage names as its teachers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from compressbench.core.errors import UserError
from compressbench.core.nearest import nearest
from compressbench.core.validation import shown


def teachers_of(
    name: str, config: Mapping[str, Any], before: Collection[str], where: str
) -> dict[str, str]:
    """Map roles ("teacher", "teacher.1", ...) to the stages that `teacher` names."""
    given = config.get("teacher")
    if given is None:
        if config.get("loss") is not None and "teacher" in config:
            raise UserError(f"{where}.teacher is required: the name of an earlier stage")
        return {}
    if "loss" in config and config["loss"] is None:
        raise UserError(f"{where}.teacher={given} needs a loss: set both or neither")
    names = list(given) if isinstance(given, (list, tuple)) else [given]
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}.teacher must name an earlier stage, got {shown(given)}")
    if not names or len(set(names)) < len(names):
        raise UserError(f"{where}.teacher={given} must name different earlier stages")
    for teacher in names:
        if teacher not in before:
            choices = nearest(teacher, before)
            raise UserError(f"{where}.teacher={teacher} is not a stage before {name}{choices}")
    return {f"teacher.{i}" if i else "teacher": n for i, n in enumerate(names)}
