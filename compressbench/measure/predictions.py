"""Runs an exported file, or a model, on a split of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from compressbench.core.errors import CheckFailedError
from compressbench.core.journal import Journal
from compressbench.core.types import Data, SplitName

_NOWHERE = Journal()


def predict(
    onnx_path: Path,
    data: Data,
    split: SplitName,
    *,
    threads: int = 1,
    batch_size: int = 100,
    journal: Journal = _NOWHERE,
) -> Tensor:
    """Answers of the exported file for a whole split, float32 [N, ...], in the order of the split.

    `threads` are those of ONNX Runtime. `journal` keeps the answers of this file. Raises
    CheckFailedError if any is not finite.
    """
    from compressbench.measure.session import open_session, options

    session = open_session(onnx_path, options(threads))

    def run(batch: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"input": batch.numpy()})[0])

    rows = journal.rows("answers", _batches(data, split, batch_size), run)
    return _finite(torch.cat(rows), onnx_path.name)


def predict_torch(
    model: nn.Module | Callable[[Tensor], Tensor],
    data: Data,
    split: SplitName,
    batch_size: int = 100,
    journal: Journal = _NOWHERE,
) -> Tensor:
    """Answers of the PyTorch model, float32 [N, ...]; the model must be in eval mode on the CPU.

    `journal` keeps the answers of this model. Raises CheckFailedError if any is not finite.
    """
    with torch.inference_mode():
        rows = journal.rows("answers", _batches(data, split, batch_size), model)
    return _finite(torch.cat(rows), "the PyTorch model")


def _batches(data: Data, split: SplitName, batch_size: int) -> Iterator[Tensor]:
    inputs = data.split(split).inputs
    for start in range(0, len(inputs), batch_size):
        yield data.prepare(inputs[start : start + batch_size].cpu()).contiguous()


def _finite(answers: Tensor, what: str) -> Tensor:
    bad = (~torch.isfinite(answers)).flatten(1).any(1).nonzero()
    if len(bad):
        raise CheckFailedError(f"{what}: the answer to sample {int(bad[0])} holds NaN or infinity")
    return answers
