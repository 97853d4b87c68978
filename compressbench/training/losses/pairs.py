"""Checks of the layer pairs that a feature loss compares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressbench.core.errors import UserError

Shape = tuple[int, ...]  # without the batch axis


def check_layers(layers: Any) -> None:
    """Raise UserError unless `layers` is None or maps names to names."""
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
    """Raise UserError unless the maps [C, H, W] (or [C, L]) differ at most in channels."""
    if len(student) < 2 or student[1:] != teacher[1:]:
        raise UserError(
            f"{list(student)} of the student and {list(teacher)} of the teacher: channels may "
            "differ, but both need positions, and the same ones"
        )
