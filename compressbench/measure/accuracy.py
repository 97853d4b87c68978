"""Runs an exported file on a split of a dataset and computes metrics of its predictions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.core.journal import Journal
from compressbench.core.types import Data, SplitName

_NOWHERE = Journal()
METRICS = ("accuracy", "balanced_accuracy", "f1")


def predict(
    onnx_path: Path,
    data: Data,
    split: SplitName,
    *,
    threads: int = 1,
    batch_size: int = 100,
    journal: Journal = _NOWHERE,
) -> Tensor:
    """Logits of the exported file for a whole split, float32 [N, K], in the order of the split.

    `threads` are those of ONNX Runtime. `journal` keeps the logits of this file. Raises
    CheckFailedError if any logit is not finite.
    """
    from compressbench.measure.session import open_session, options

    session = open_session(onnx_path, options(threads))

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])

    rows = journal.rows("logits", _batches(data, split, batch_size), run)
    return _finite(torch.cat(rows), onnx_path.name)


def predict_torch(
    model: nn.Module,
    data: Data,
    split: SplitName,
    batch_size: int = 100,
    journal: Journal = _NOWHERE,
) -> Tensor:
    """Logits of the PyTorch model, float32 [N, K]; the model must be in eval mode on the CPU.

    `journal` keeps the logits of this model. Raises CheckFailedError if any logit is not finite.
    """
    with torch.inference_mode():
        rows = journal.rows("logits", _batches(data, split, batch_size), model)
    return _finite(torch.cat(rows), "the PyTorch model")


def score(metric: str, logits: Tensor, targets: Tensor) -> float:
    """Compute a metric in [0, 1] from logits [N, K] and class indices [N].

    `metric` is `accuracy` (top-1), `balanced_accuracy` (mean recall over the classes) or `f1`
    (mean over the classes). Raises UserError for any other name.
    """
    check_metric(metric)
    chosen, classes = logits.argmax(1), logits.shape[1]
    if metric == "accuracy":  # exact: torchmetrics rounds to float32
        return int((chosen == targets).sum()) / len(targets)
    from torchmetrics.functional import classification

    if metric == "f1":
        return float(classification.multiclass_f1_score(chosen, targets, classes, "macro"))
    return float(classification.multiclass_accuracy(chosen, targets, classes, "macro"))


def check_metric(metric: str) -> None:
    """Raise UserError unless `metric` is supported."""
    if metric not in METRICS:
        raise UserError(f"dataset.metric must be one of {', '.join(METRICS)}, got {metric!r}")


def _batches(data: Data, split: SplitName, batch_size: int) -> Iterator[Tensor]:
    inputs = data.split(split).inputs
    for start in range(0, len(inputs), batch_size):
        yield data.prepare(inputs[start : start + batch_size].cpu()).contiguous()


def _finite(logits: Tensor, what: str) -> Tensor:
    bad = (~torch.isfinite(logits)).any(1).nonzero()
    if len(bad):
        raise CheckFailedError(f"{what}: the logits of image {int(bad[0])} hold NaN or infinity")
    return logits
