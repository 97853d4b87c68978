"""Yields training images for a criterion and reports progress."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from compressbench.core.types import Context
from compressbench.data.calibration import training_batches


def watched_batches(
    context: Context, images: int, batch_size: int, text: str, sums: dict[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield `training_batches` (images, labels), reporting progress as `text`.

    What the loop adds up in `sums` is kept by the journal of `context`, for this `text` only.
    """
    batches = enumerate(training_batches(context, images, batch_size))
    for done, batch in context.journal.over(text, batches, sums):
        context.progress(min(done * batch_size, images), images, text)
        yield batch
