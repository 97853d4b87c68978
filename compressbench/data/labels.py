"""Maps labels in files to class numbers and int64 targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from compressbench.core.errors import UserError

Label = str | int


def class_numbers(labels: Sequence[Label], declared: Sequence[str] | None) -> dict[Label, int]:
    """Label -> class number, for the sorted distinct labels or for the `declared` class names.

    With `declared` names, integer labels must be 0 ... K-1 and text labels must be among the names.
    Raises UserError for duplicate names and for fewer than two classes.
    """
    if declared is not None:
        by_number = bool(labels) and isinstance(labels[0], int)
        allowed: Sequence[Label] = range(len(declared)) if by_number else declared
    else:
        _refuse_negative(labels)
        allowed = sorted(set(labels), key=lambda label: (isinstance(label, str), label))
    if len(allowed) != len(set(allowed)):
        raise UserError(f"dataset.class_names must differ from each other, got {list(allowed)}")
    if len(allowed) < 2:
        raise UserError(f"dataset: at least two classes are needed, got {list(allowed)}")
    return {label: number for number, label in enumerate(allowed)}


def _refuse_negative(labels: Sequence[Label]) -> None:
    row = next((i for i, label in enumerate(labels) if isinstance(label, int) and label < 0), None)
    if row is not None:
        raise UserError(
            f"dataset: row {row} has label {labels[row]}, which often means that it has none; "
            "labels must be texts or integers of at least 0"
        )


def targets(labels: Sequence[Label], numbers: dict[Label, int], where: str) -> Tensor:
    """The class number of every label, int64 [N]; raises UserError for an unknown label."""
    if not labels:
        raise UserError(f"{where}: contains no images")
    for row, label in enumerate(labels):
        if label not in numbers:
            raise UserError(f"{where} row {row}: label must be {_range(numbers)}, got {label!r}")
    return torch.tensor([numbers[label] for label in labels])


def _range(numbers: dict[Label, int]) -> str:
    labels = list(numbers)
    if labels == list(range(len(labels))):
        return f"an integer in [0, {len(labels) - 1}]"
    shown = ", ".join(str(label) for label in labels[:8])
    return f"one of {shown}" + (", …" if len(labels) > 8 else "")
