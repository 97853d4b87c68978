"""Which layers of a student a loss compares with which of its teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressbench.core.errors import UserError

Shape = tuple[int, ...]  # of one sample


def check_layers(layers: Any) -> None:
    """Raise UserError unless `layers` maps names to names, or is None."""
    if layers is None:
        return
    if not isinstance(layers, Mapping) or not layers:
        raise UserError(
            f"layers must map layers of the student to layers of the teacher, got {layers!r}"
        )
    for student, teacher in layers.items():
        if not isinstance(student, str) or not isinstance(teacher, str):
            raise UserError(f"layers must map names to names, got {student!r}: {teacher!r}")


def check_same_positions(student: Shape, teacher: Shape) -> None:
    """Raise UserError unless maps [C, H, W] (or [C, L]) differ in their channels only."""
    if len(student) < 2 or student[1:] != teacher[1:]:
        raise UserError(
            f"{list(student)} of the student and {list(teacher)} of the teacher: channels may "
            "differ, positions must be there and the same"
        )
