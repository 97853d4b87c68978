"""Positions that count: logits of token classification have labels that say nothing."""

from __future__ import annotations

from torch import Tensor

IGNORED = -100  # the label of a position without one, as torch's cross-entropy has it


def labelled(student: Tensor, teacher: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [..., K], logits [..., K], labels int64 [...] -> [M, K], [M, K], [M], of the M
    positions whose label is not `IGNORED`.
    """
    found = targets != IGNORED
    return student[found], teacher[found], targets[found]
