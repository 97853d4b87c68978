"""Selects labelled positions: in token classification some positions have no label."""

from __future__ import annotations

from torch import Tensor

IGNORED = -100  # label of unlabelled positions, the default of torch's cross-entropy


def labelled(student: Tensor, teacher: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the M positions whose label is not `IGNORED`.

    Logits [..., K] twice and labels int64 [...] -> [M, K], [M, K] and [M].
    """
    kept = targets != IGNORED
    return student[kept], teacher[kept], targets[kept]
