"""Training images for a criterion, with a word on how far it is."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from compressbench.core.types import Context
from compressbench.data.calibration import training_batches


def watched_batches(
    context: Context, images: int, batch_size: int, text: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """The `training_batches`, images and labels; `text` says what they are for."""
    for done, batch in enumerate(training_batches(context, images, batch_size)):
        context.progress(min(done * batch_size, images), images, text)
        yield batch
